"""Refuses what a web page of somebody else would have the server do: a simple POST and a WebSocket need no preflight."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from locallab.errors import Forbidden
from locallab.keys import Keyring
from locallab.server.origins import Origins

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
