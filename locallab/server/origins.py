"""Which web pages may call. A browser names the page's origin; a page must not use the model behind its user's back."""

from __future__ import annotations

import ipaddress
import re

from locallab.errors import ConfigError
from locallab.server.hosts import matches, normal, without_port

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\s,]+)")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Origins:
    """The origins that `setting`, comma-separated, allows: "*", "null", origins, and patterns as https://*.example.com.

    None allows the pages of this machine, and every one where a key is required: a page that has a key may use it. A page
    of this very server may always call. Raises ConfigError for what is no origin.
    """

    def __init__(self, setting: str | None) -> None:
        self._allowed = None if setting is None else _parse(setting)

    def everyone(self, key_required: bool) -> bool:
        """Whether every origin is allowed."""
        return key_required if self._allowed is None else "*" in self._allowed

    def allow(self, origin: str, host: str, key_required: bool) -> bool:
        """Whether a page of `origin` may call the server that the request calls `host`."""
        origin = _normal(origin)
        if self.everyone(key_required) or _same(origin, host):
            return True
        if self._allowed is None:
            return _is_local(origin)
        return any(_matches(origin, pattern) for pattern in self._allowed)


def _same(origin: str, host: str) -> bool:
    """Whatever the scheme: what ends TLS in front of this server speaks plain HTTP to it."""
    found = _ORIGIN.fullmatch(origin)
    if found is None or not host.strip():
        return False
    return found[2] == _normal(f"{found[1]}://{host.strip()}").partition("://")[2]


def _is_local(origin: str) -> bool:
    found = _ORIGIN.fullmatch(origin)
    if found is None or found[1] not in _DEFAULT_PORTS:
        return False
    name = normal(without_port(found[2]))
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _matches(origin: str, pattern: str) -> bool:
    if "://*." not in pattern:
        return origin == pattern
    scheme, _, name = pattern.partition("://")
    return origin.startswith(f"{scheme}://") and matches(origin[len(scheme) + 3 :], name)


def _normal(origin: str) -> str:
    """In small letters, without the port that the scheme implies."""
    origin = origin.strip().lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition("://")[0], "\0"))


def _parse(setting: str) -> list[str]:
    entries = [_normal(entry).removesuffix("/") for entry in setting.split(",") if entry.strip()]
    for entry in entries:
        if entry not in ("*", "null") and not _ORIGIN.fullmatch(entry):
            raise ConfigError(f"cors_origins: {entry!r} is no origin; write origins such as https://example.com, or *")
    return entries
