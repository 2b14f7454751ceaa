"""Host names that requests may use, and the check of them.

A page of another name that resolves to this machine (DNS rebinding) reads nothing. Addresses are always allowed: they cannot be
rebound.
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


class HostCheck:
    """Raises Forbidden for a Host that `hosts` does not allow, and that is not the one of `tunnel`. Where a key is required any
    will do, unless the user set some."""

    def __init__(self, app: ASGIApp, hosts: Hosts, keyring: Keyring, tunnel: Tunnel | None = None) -> None:
        self._app = app
        self._hosts = hosts
        self._keyring = keyring
        self._tunnel = tunnel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and (self._hosts.given or not self._keyring.required):
            host = Headers(scope=scope).get("host", "")
            if not self._hosts.allow(host) and not self._is_tunnelled(host):
                raise Forbidden(f"this server does not go by the name {host!r}; --allowed-hosts sets names it goes by")
        await self._app(scope, receive, send)

    def _is_tunnelled(self, host: str) -> bool:
        return self._tunnel is not None and self._tunnel.carries(host.encode("latin-1"))


_PATTERN = re.compile(r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")


class Hosts:
    """The names that `setting`, comma-separated, allows besides this machine's own: "*", names, and patterns as *.example.com.

    Raises ConfigError for what is no name.
    """

    def __init__(self, setting: str | None, hostname: str | None = None) -> None:
        self.given = setting is not None
        own = normal(socket.gethostname() if hostname is None else hostname)
        self._patterns = {"localhost", "*.localhost", own, f"{own.partition('.')[0]}.local", *_parse(setting or "")}

    def allow(self, host: str) -> bool:
        """Whether a Host header, with or without a port, is fine. Without one it was no browser."""
        name = normal(without_port(host.strip()))
        return not name or is_address(name) or any(matches(name, pattern) for pattern in self._patterns)


def matches(name: str, pattern: str) -> bool:
    """`*` is every name, `*.example.com` what lies below, anything else itself. Both as `normal` makes them."""
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and name != pattern[1:]
    return pattern in ("*", name)


def without_port(host: str) -> str:
    """The name of `name:port`; of an IPv6 address in brackets, the address."""
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


def normal(name: str) -> str:
    return name.lower().removesuffix(".")


def _parse(setting: str) -> list[str]:
    entries = [normal(entry.strip()) for entry in setting.split(",") if entry.strip()]
    for entry in entries:
        if not _PATTERN.fullmatch(entry) and not is_address(entry):
            raise ConfigError(f"allowed_hosts: {entry!r} is no host name; write names such as example.com or *.example.com")
    return entries
