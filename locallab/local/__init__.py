"""LocalLab inside a Python program: a server in the background (`start`), or a model without one (`Engine`)."""

from locallab.local.engine import Engine
from locallab.local.requests import Answer
from locallab.local.server import Server, start

__all__ = ["Answer", "Engine", "Server", "start"]
