"""LocalLab inside a Python program: a server in the background (`start`), or a model without a server (`Engine`)."""

from locallab.inprocess.engine import Engine
from locallab.inprocess.requests import Answer
from locallab.inprocess.server import Server, start

__all__ = ["Answer", "Engine", "Server", "start"]
