"""One log line for each request, written once it has ended, and an id that is in the answer and in every line about it."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.logs import request_id

LONGEST_ID = 128

BEGINNINGS = ("http.response.start", "websocket.accept", "websocket.http.response.start")

log = logging.getLogger("locallab.access")


class AccessLog:
    """Adds `x-request-id` to every answer, the client's own if it sent one, and to all that is logged while it is handled.

    With `enabled` logs a line for each request, and for each WebSocket once it is closed.
    """

    def __init__(self, app: ASGIApp, enabled: bool) -> None:
        self._app = app
        self._enabled = enabled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status, identity, started = 0, _identity(scope), time.perf_counter()

        def relay(message: Message) -> Awaitable[None]:  # no coroutine of its own: every token passes here
            nonlocal status
            if message["type"] in BEGINNINGS:
                status = message.get("status", 101)
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity.encode("latin-1"))]
            elif message["type"] == "websocket.close" and not status:
                status = 403  # which is what a client sees that was not let in
            return send(message)

        before = request_id.set(identity)
        try:
            await self._app(scope, receive, relay)
        finally:
            if self._enabled:
                took = (time.perf_counter() - started) * 1000
                client, method = (scope.get("client") or ("-",))[0], scope.get("method", "WS")
                log.info("%s %s %s %d %.0f ms", client, method, scope["path"], status, took)
            request_id.reset(before)


def _identity(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if given.isascii() and given.isprintable() and 0 < len(given) <= LONGEST_ID else secrets.token_hex(8)
