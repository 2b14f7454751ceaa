"""Access log: one line for each request once it has ended, and an id that its answer and all its log lines carry."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.logs import request_id
from locallab.supervision import BlackBox

LONGEST_ID = 128

BEGINNINGS = ("http.response.start", "websocket.accept", "websocket.http.response.start")

log = logging.getLogger("locallab.access")


class AccessLog:
    """Add `x-request-id`, the client's own if it sent a valid one, to every answer and to all log lines of the request.

    With `enabled`, log a line for each request, and for each WebSocket once it is closed. `box` has the ids of those under way.
    """

    def __init__(self, app: ASGIApp, enabled: bool, box: BlackBox | None = None) -> None:
        self._app = app
        self._enabled = enabled
        self._box = box or BlackBox()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status, started = 0, time.perf_counter()
        identity = Headers(scope=scope).get("x-request-id", "")
        if not (identity.isascii() and identity.isprintable() and 0 < len(identity) <= LONGEST_ID):
            identity = secrets.token_hex(8)

        def relay(message: Message) -> Awaitable[None]:  # not a coroutine: it runs for every token
            nonlocal status
            if message["type"] in BEGINNINGS:
                status = message.get("status", 101)
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity.encode("latin-1"))]
            elif message["type"] == "websocket.close" and not status:
                status = 403  # the status that a refused client sees
            return send(message)

        before = request_id.set(identity)
        number = self._box.begin(identity)
        try:
            await self._app(scope, receive, relay)
        finally:
            self._box.end(number)
            if self._enabled:
                took = (time.perf_counter() - started) * 1000
                client, method = (scope.get("client") or ("-",))[0], scope.get("method", "WS")
                log.info("%s %s %s %d %.0f ms", client, method, scope["path"], status, took)
            request_id.reset(before)
