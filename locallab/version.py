"""The version of the installed package. Apart from the package's front, so that no lower part imports that."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("locallab")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
