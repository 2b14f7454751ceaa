"""Origins of web pages that may call, CORS for them, and the refusal of all others.

A page must not use the model behind its user's back: a simple POST and a WebSocket need no preflight. CORS is answered without
credentials: keys travel in headers, not in cookies.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.errors import ConfigError, Forbidden
from locallab.keys import Keyring
from locallab.server.errors import refuse
from locallab.server.middleware.hosts import matches, normal, without_port

HARMLESS = ("GET", "HEAD", "OPTIONS")
"""Methods that change and generate nothing; the browser keeps their answers from a page that may not read them."""


class OriginCheck:
    """Raises Forbidden for a WebSocket, or a request that may change or generate something, from a page that may not call."""

    def __init__(self, app: ASGIApp, origins: Origins, keyring: Keyring) -> None:
        self._app = app
        self._origins = origins
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" or (scope["type"] == "http" and scope["method"] not in HARMLESS):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and not self._origins.allow(origin, headers.get("host", ""), self._keyring.required):
                raise forbidden(origin)
        await self._app(scope, receive, send)


def forbidden(origin: str) -> Forbidden:
    return Forbidden(f"pages of the origin {origin!r} may not call this server; --cors-origins sets those that may")


EXPOSED = "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, X-Request-ID, X-LocalLab-Notes, Retry-After"

MAX_AGE = 600
"""Seconds for which a browser may keep the answer to a preflight."""


class Cors:
    """Answers preflights itself, without a key and uncounted, and marks the answers to pages that may call."""

    def __init__(self, app: ASGIApp, origins: Origins, keyring: Keyring) -> None:
        self._app = app
        self._origins = origins
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        if origin is None:
            await self._app(scope, receive, send)
            return
        marks = self._marks(origin, headers.get("host", ""))
        if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
            await self._app(scope, receive, _marking(send, marks))
        elif "access-control-allow-origin" in marks:
            await Response(status_code=204, headers=marks | _granted(headers))(scope, receive, send)
        else:
            await refuse(scope, receive, _marking(send, marks), forbidden(origin))

    def _marks(self, origin: str, host: str) -> dict[str, str]:
        """The headers for a page of `origin`; those for nobody in particular where it may not call."""
        required = self._keyring.required
        if self._origins.everyone(required):
            return {"access-control-allow-origin": "*", "access-control-expose-headers": EXPOSED}
        if not self._origins.allow(origin, host, required):
            return {"vary": "Origin"}
        return {"access-control-allow-origin": origin, "access-control-expose-headers": EXPOSED, "vary": "Origin"}


def _granted(asked: Headers) -> dict[str, str]:
    """Whatever a preflight asks for: it is the origin that counts, and clients send headers of many names."""
    granted = {
        "access-control-allow-methods": asked["access-control-request-method"],
        "access-control-max-age": str(MAX_AGE),
    }
    if "access-control-request-headers" in asked:
        granted["access-control-allow-headers"] = asked["access-control-request-headers"]
    if asked.get("access-control-request-private-network") == "true":
        granted["access-control-allow-private-network"] = "true"
    return granted


def _marking(send: Send, marks: dict[str, str]) -> Send:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in marks.items()]

    def relay(message: Message) -> Awaitable[None]:  # no coroutine of its own: every token passes here
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *raw]
        return send(message)

    return relay


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
