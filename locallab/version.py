"""The version of the installed distribution. Apart from the package's front, so that no lower part imports that.

The distribution is called locallab-server: `locallab` in the public index is another project.
"""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "locallab-server"

try:
    __version__ = version(DISTRIBUTION)
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
