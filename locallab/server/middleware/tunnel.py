"""Traffic through the tunnel."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.server.reply import RawHeaders
from locallab.tunnel import Tunnel


def _head(headers: RawHeaders) -> int:
    """Return the bytes of a header block, each line with a colon, a space and a line break."""
    return sum(len(name) + len(value) + 4 for name, value in headers)


def _size(message: Message) -> int:
    """Return the bytes of an HTTP or WebSocket message."""
    data: Any = message.get("bytes") or message.get("text") or b""
    size = len(data.encode() if isinstance(data, str) else data)
    return len(message.get("body", b"")) + size + _head(list(message.get("headers", ())))


class TunnelCounter:
    """Add each request with the tunnel's Host, and its bytes both ways, to the tunnel's usage once it has ended."""

    def __init__(self, app: ASGIApp, tunnel: Tunnel) -> None:
        self._app = app
        self._tunnel = tunnel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self._tunnel.carries(dict(scope["headers"]).get(b"host", b"")):
            await self._app(scope, receive, send)
            return
        bytes_in = _head(scope["headers"]) + len(scope.get("raw_path") or scope["path"])
        bytes_out = 0

        async def incoming() -> Message:
            nonlocal bytes_in
            message = await receive()
            bytes_in += _size(message)
            return message

        def outgoing(message: Message) -> Awaitable[None]:  # not a coroutine: it runs for every token
            nonlocal bytes_out
            bytes_out += _size(message)
            return send(message)

        try:
            await self._app(scope, incoming, outgoing)
        finally:
            self._tunnel.usage.add(requests=1, bytes_in=bytes_in, bytes_out=bytes_out)
