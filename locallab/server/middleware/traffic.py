"""Counts of requests by route and status, and of those in progress."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

OTHER = "other"
"""The route of unknown paths: paths that clients invent must not fill the memory."""

GONE = 499
"""The status of a request whose client disconnected before it had one."""

WEBSOCKET = {"websocket.accept": 101, "websocket.close": 403}
"""The status that the first message to a WebSocket client stands for."""


@dataclasses.dataclass(slots=True)
class Traffic:
    """Finished requests by (route, status), and the number in progress. Use it in the event loop only."""

    ended: collections.Counter[tuple[str, int]] = dataclasses.field(default_factory=collections.Counter)
    requests: int = 0
    websockets: int = 0


class TrafficCounter:
    """Update `traffic`. A route is named by its template, which `Paths` has found."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status = 0

        def relay(message: Message) -> Awaitable[None]:  # not a coroutine: it runs for every token
            nonlocal status
            status = status or message.get("status", 0) or WEBSOCKET.get(message["type"], 0)
            return send(message)

        self._change(scope, 1)
        try:
            await self._app(scope, receive, relay)
        finally:
            self._change(scope, -1)
            self._traffic.ended[scope["state"]["route"] or OTHER, status or GONE] += 1

    def _change(self, scope: Scope, amount: int) -> None:
        if scope["type"] == "http":
            self._traffic.requests += amount
        else:
            self._traffic.websockets += amount
