"""LocalLab: a private, fast, OpenAI-style inference endpoint on a machine of your own."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("locallab")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
