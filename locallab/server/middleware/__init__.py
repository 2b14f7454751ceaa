"""Pure ASGI middleware, one noun a file. `create_app` lists it in order, with the reasons for the order."""

from locallab.server.middleware.access_log import AccessLog
from locallab.server.middleware.auth import Auth, Credentials
from locallab.server.middleware.body_limit import BodyLimit
from locallab.server.middleware.content_encoding import ContentDecoding
from locallab.server.middleware.failsafe import Failsafe
from locallab.server.middleware.hosts import HostCheck
from locallab.server.middleware.origins import Cors, OriginCheck
from locallab.server.middleware.paths import Paths
from locallab.server.middleware.proxies import Proxies, networks
from locallab.server.middleware.rate_limit import RateLimit
from locallab.server.middleware.traffic import Traffic, TrafficCounter
from locallab.server.middleware.tunnel import TunnelCounter

__all__ = [
    "AccessLog",
    "Auth",
    "BodyLimit",
    "ContentDecoding",
    "Cors",
    "Credentials",
    "Failsafe",
    "HostCheck",
    "OriginCheck",
    "Paths",
    "Proxies",
    "RateLimit",
    "Traffic",
    "TrafficCounter",
    "TunnelCounter",
    "networks",
]
