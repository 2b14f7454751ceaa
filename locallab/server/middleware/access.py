"""One log line for each request, written once it has ended, and an id that the client finds in the answer too."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LONGEST_ID = 128

log = logging.getLogger("locallab.access")


class AccessLog:
    """Adds `x-request-id` to every answer, the client's own if it sent one; with `enabled` logs a line for each."""

    def __init__(self, app: ASGIApp, enabled: bool) -> None:
        self._app = app
        self._enabled = enabled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, request_id, started = 0, _request_id(scope), time.perf_counter()

        def relay(message: Message) -> Awaitable[None]:  # no coroutine of its own: every token passes here
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode("latin-1"))]
            return send(message)

        try:
            await self._app(scope, receive, relay)
        finally:
            if self._enabled:
                took = (time.perf_counter() - started) * 1000
                client = (scope.get("client") or ("-",))[0]
                log.info("%s %s %s %d %.0f ms %s", client, scope["method"], scope["path"], status, took, request_id)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if given.isascii() and given.isprintable() and 0 < len(given) <= LONGEST_ID else secrets.token_hex(8)
