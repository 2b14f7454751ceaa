"""The client's address behind trusted proxies, from X-Forwarded-For."""

from __future__ import annotations

import ipaddress
from typing import Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from locallab.errors import ConfigError


def networks(setting: str) -> list[str]:
    """Parse comma-separated networks. IPv4 networks are also returned as dual-stack sockets report them (::ffff:0:0/96).

    Raises ConfigError for an invalid address or network.
    """
    found = []
    for entry in filter(None, (entry.strip() for entry in setting.split(","))):
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            raise ConfigError(
                f"trusted_proxies: {entry!r} is not an address or network; use, for example, 10.0.0.1 or 10.0.0.0/8"
            ) from None
        found.append(str(network))
        if network.version == 4:
            found.append(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
    return found


class Proxies(ProxyHeadersMiddleware):
    """If the peer is in `trusted`, set scope["client"] to the last address of X-Forwarded-For outside of `trusted`."""

    def __init__(self, app: Any, trusted: list[str]) -> None:
        super().__init__(app, trusted)
