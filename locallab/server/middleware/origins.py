"""Allowed origins of web pages, CORS for them, and the check of them.

No page may use the model without its user's knowledge, and a simple POST or a WebSocket needs no preflight. CORS is answered
without credentials: keys are sent in headers, not in cookies.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from locallab.errors import ConfigError, Forbidden
from locallab.keys import Keyring
from locallab.server.errors import refuse
from locallab.server.middleware.hosts import matches, normal, without_port
from locallab.server.reply import adding_headers

SAFE = ("GET", "HEAD", "OPTIONS")
"""Methods that neither change nor generate anything; browsers hide their answers from a page that may not read them."""

EXPOSED = (
    "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, X-Request-ID, X-LocalLab-Notes, X-LocalLab-Cache, Retry-After"
)

MAX_AGE = 600
"""Seconds for which a browser may cache the answer to a preflight."""

PROGRAMS = ("app", "tauri", "vscode-file", "vscode-webview")
"""Schemes of the pages inside desktop programs: no web site can have such an origin, its user has installed it."""

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\s,]+)")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _normal(origin: str) -> str:
    """Return the origin in lower case, without its scheme's default port."""
    origin = origin.strip().lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition("://")[0], "\0"))


def _is_same(origin: str, host: str) -> bool:
    """Compare with any scheme: a proxy that ends TLS speaks plain HTTP to this server."""
    found = _ORIGIN.fullmatch(origin)
    if found is None or not host.strip():
        return False
    return found[2] == _normal(f"{found[1]}://{host.strip()}").partition("://")[2]


def _is_local(origin: str) -> bool:
    found = _ORIGIN.fullmatch(origin)
    if found is None or found[1] not in _DEFAULT_PORTS:
        return found is not None and found[1] in PROGRAMS
    name = normal(without_port(found[2]))
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _matches(origin: str, pattern: str) -> bool:
    scheme, _, name = pattern.partition("://")
    return origin == pattern or (origin.startswith(f"{scheme}://") and matches(origin[len(scheme) + 3 :], name))


class Origins:
    """The origins in `setting`, comma-separated: "*", "null", origins, and patterns such as https://*.example.com or
    vscode-webview://*.

    None allows pages of this machine and of programs on it, or any page where a key is required: a page that has the key may
    use it. A page served by this server is always allowed. Raises ConfigError for an invalid origin.
    """

    def __init__(self, setting: str | None) -> None:
        self._allowed = None
        if setting is not None:
            self._allowed = [_normal(entry).removesuffix("/") for entry in setting.split(",") if entry.strip()]
        for entry in self._allowed or ():
            if entry not in ("*", "null") and not _ORIGIN.fullmatch(entry):
                raise ConfigError(f"cors_origins: {entry!r} is not an origin; use origins such as https://example.com, or *")

    def allow_all(self, key_required: bool) -> bool:
        return key_required if self._allowed is None else "*" in self._allowed

    def allow(self, origin: str, host: str, key_required: bool) -> bool:
        """Return whether a page of `origin` may call the server, which the request addresses as `host`."""
        origin = _normal(origin)
        if self.allow_all(key_required) or _is_same(origin, host):
            return True
        if self._allowed is None:
            return _is_local(origin)
        return any(_matches(origin, pattern) for pattern in self._allowed)


def forbidden(origin: str) -> Forbidden:
    return Forbidden(f"origin {origin!r} is not allowed; add it with --cors-origins")


class OriginCheck:
    """Raise Forbidden for a WebSocket, or a request that may change or generate something, from an origin not allowed."""

    def __init__(self, app: ASGIApp, origins: Origins, keyring: Keyring) -> None:
        self._app = app
        self._origins = origins
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" or (scope["type"] == "http" and scope["method"] not in SAFE):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and not self._origins.allow(origin, headers.get("host", ""), self._keyring.required):
                raise forbidden(origin)
        await self._app(scope, receive, send)


def _preflight_headers(request: Headers) -> dict[str, str]:
    """Grant all that a preflight requests: only the origin counts, and clients send headers of many names."""
    granted = {
        "access-control-allow-methods": request["access-control-request-method"],
        "access-control-max-age": str(MAX_AGE),
    }
    if "access-control-request-headers" in request:
        granted["access-control-allow-headers"] = request["access-control-request-headers"]
    if request.get("access-control-request-private-network") == "true":
        granted["access-control-allow-private-network"] = "true"
    return granted


class Cors:
    """Answer preflights, without a key and uncounted, and add CORS headers to answers for pages that may call."""

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
        granted = self._headers(origin, headers.get("host", ""))
        send_granted = adding_headers(send, [(name.encode(), value.encode("latin-1")) for name, value in granted.items()])
        if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
            await self._app(scope, receive, send_granted)
        elif "access-control-allow-origin" in granted:
            await Response(status_code=204, headers=granted | _preflight_headers(headers))(scope, receive, send)
        else:
            await refuse(scope, receive, send_granted, forbidden(origin))

    def _headers(self, origin: str, host: str) -> dict[str, str]:
        required = self._keyring.required
        if self._origins.allow_all(required):
            return {"access-control-allow-origin": "*", "access-control-expose-headers": EXPOSED}
        if not self._origins.allow(origin, host, required):
            return {"vary": "Origin"}
        return {"access-control-allow-origin": origin, "access-control-expose-headers": EXPOSED, "vary": "Origin"}
