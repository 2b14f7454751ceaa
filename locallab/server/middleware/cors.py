"""Lets web pages that may call read the answers (CORS). Never with credentials: keys travel in headers, not in cookies."""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.keys import Keyring
from locallab.server.errors import refuse
from locallab.server.middleware.origins import forbidden
from locallab.server.origins import Origins

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
