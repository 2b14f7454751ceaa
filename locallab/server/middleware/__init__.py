"""Pure ASGI middleware, one noun a file. From the outside in: access log, paths, failsafe, body limit."""

from locallab.server.middleware.access import AccessLog
from locallab.server.middleware.body import BodyLimit
from locallab.server.middleware.failsafe import Failsafe
from locallab.server.middleware.paths import Paths

__all__ = ["AccessLog", "BodyLimit", "Failsafe", "Paths"]
