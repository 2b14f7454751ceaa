"""Counts requests against the limits of their part of the API."""

from __future__ import annotations

import functools
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.server.limits import Limits, identity


class RateLimit:
    """Counts a request and adds to its answer how many are left, or raises RateLimited.

    scope["state"]["count"] counts one more, for the messages of a WebSocket; opening one is not counted.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._serve(scope, receive, send)
            return
        key, address = scope["state"]["key"], (scope.get("client") or ("-",))[0]
        rate = self._limits.rate(scope["path"], key)
        count = functools.partial(self._limits.count, rate, identity(key, address))
        scope["state"]["count"] = count
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and rate is not None:
            send = _adding(send, await count())
        await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):  # whoever hears it stops the event loop
                await self._limits.close()
            await send(message)

        await self._app(scope, receive, closing)


def _adding(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    def relay(message: Message) -> Awaitable[None]:  # no coroutine of its own: every token passes here
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        return send(message)

    return relay
