"""Pure ASGI middleware, one noun a file. `create_app` lists it in its order, and says why it is that."""

from locallab.server.middleware.access import AccessLog
from locallab.server.middleware.auth import Auth
from locallab.server.middleware.body import BodyLimit
from locallab.server.middleware.cors import Cors
from locallab.server.middleware.counts import CountTraffic, Traffic
from locallab.server.middleware.credentials import Credentials
from locallab.server.middleware.failsafe import Failsafe
from locallab.server.middleware.hosts import HostCheck
from locallab.server.middleware.origins import OriginCheck
from locallab.server.middleware.paths import Paths
from locallab.server.middleware.proxies import Proxies, networks
from locallab.server.middleware.ratelimit import RateLimit
from locallab.server.middleware.tunnelled import Tunnelled

__all__ = [
    "AccessLog",
    "Auth",
    "BodyLimit",
    "Cors",
    "CountTraffic",
    "Credentials",
    "Failsafe",
    "HostCheck",
    "OriginCheck",
    "Paths",
    "Proxies",
    "RateLimit",
    "Traffic",
    "Tunnelled",
    "networks",
]
