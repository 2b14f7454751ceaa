"""Who the client is when a proxy stands between: X-Forwarded-For, as far as it can be believed."""

from __future__ import annotations

import ipaddress
from typing import Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from locallab.errors import ConfigError


class Proxies(ProxyHeadersMiddleware):
    """Makes scope["client"] the last address of X-Forwarded-For that is in none of the networks `trusted`, if the peer is."""

    def __init__(self, app: Any, trusted: list[str]) -> None:
        super().__init__(app, trusted)


def networks(trusted: str) -> list[str]:
    """The networks of the setting, comma-separated; those of IPv4 also as a socket for both protocols names them.

    Raises ConfigError for what is no address or network.
    """
    found = []
    for entry in filter(None, (entry.strip() for entry in trusted.split(","))):
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            raise ConfigError(
                f"trusted_proxies: {entry!r} is no address or network; write such as 10.0.0.1 or 10.0.0.0/8"
            ) from None
        found.append(str(network))
        if network.version == 4:
            found.append(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
    return found
