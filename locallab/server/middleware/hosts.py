"""Allowed host names, and the check of them.

The check protects against DNS rebinding: a page whose name resolves to this machine cannot read anything. IP addresses are
always allowed, as they cannot be rebound.
"""

from __future__ import annotations

import ipaddress
import re
import socket

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from locallab.errors import ConfigError, Forbidden
from locallab.keys import Keyring
from locallab.tunnel import Tunnel

RESERVED = ("localhost", "*.localhost", "*.local", "*.internal")
"""Names that no page of the internet can have: they lead to this machine or stay in its network, as those by which containers
call their host do (RFC 6761, RFC 6762, ICANN's reservation of .internal)."""

_PATTERN = re.compile(r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")


def normal(name: str) -> str:
    return name.lower().removesuffix(".")


def without_port(host: str) -> str:
    """Return the name in `name:port`, or the address in `[address]:port`."""
    found = re.fullmatch(r"\[([^\[\]]*)\](:\d*)?", host)
    if found is not None:
        return found[1]
    return host if host.count(":") != 1 else host.partition(":")[0]


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def matches(name: str, pattern: str) -> bool:
    """Match a name: `*` is any name, `*.example.com` any name below it, anything else itself. Both must be `normal`."""
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and name != pattern[1:]
    return pattern in ("*", name)


class Hosts:
    """Names of this machine and its network, and those in `setting`, comma-separated: "*", names, and patterns such as
    *.example.com.

    Raises ConfigError for an invalid name.
    """

    def __init__(self, setting: str | None, hostname: str | None = None) -> None:
        self.configured = setting is not None
        entries = [normal(entry.strip()) for entry in (setting or "").split(",") if entry.strip()]
        for entry in entries:
            if not _PATTERN.fullmatch(entry) and not is_address(entry):
                raise ConfigError(f"allowed_hosts: {entry!r} is not a host name such as example.com or *.example.com")
        own = normal(socket.gethostname() if hostname is None else hostname)
        self.patterns = tuple(dict.fromkeys((*RESERVED, own, *entries)))

    def allow(self, host: str) -> bool:
        """Return whether a Host header, with or without a port, is allowed. An empty one is: browsers always send a name."""
        name = normal(without_port(host.strip()))
        return not name or is_address(name) or any(matches(name, pattern) for pattern in self.patterns)


class HostCheck:
    """Raise Forbidden for a Host that is neither allowed by `hosts` nor the one of `tunnel`.

    Where a key is required, any Host is allowed unless hosts are configured.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts, keyring: Keyring, tunnel: Tunnel | None = None) -> None:
        self._app = app
        self._hosts = hosts
        self._keyring = keyring
        self._tunnel = tunnel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and (self._hosts.configured or not self._keyring.required):
            host = Headers(scope=scope).get("host", "")
            if not self._hosts.allow(host) and not (self._tunnel and self._tunnel.carries(host.encode("latin-1"))):
                raise Forbidden(f"host {host!r} is not allowed; add it with --allowed-hosts")
        await self._app(scope, receive, send)
