"""Counts what goes through the tunnel. Requests that come another way pass untouched."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.tunnel import Tunnel

Headers = list[tuple[bytes, bytes]]


class Tunnelled:
    """Adds each request with the tunnel's Host, and its bytes both ways, to the tunnel's usage once it has ended."""

    def __init__(self, app: ASGIApp, tunnel: Tunnel) -> None:
        self._app = app
        self._tunnel = tunnel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self._tunnel.carries(dict(scope["headers"]).get(b"host", b"")):
            await self._app(scope, receive, send)
            return
        came = _head(scope["headers"]) + len(scope.get("raw_path") or scope["path"])
        went = 0

        async def incoming() -> Message:
            nonlocal came
            message = await receive()
            came += _size(message)
            return message

        def outgoing(message: Message) -> Awaitable[None]:  # no coroutine of its own: every token passes here
            nonlocal went
            went += _size(message)
            return send(message)

        try:
            await self._app(scope, incoming, outgoing)
        finally:
            self._tunnel.usage.add(requests=1, bytes_in=came, bytes_out=went)


def _head(headers: Headers) -> int:
    """Bytes of a header block: each line has a colon, a space and a line's end."""
    return sum(len(name) + len(value) + 4 for name, value in headers)


def _size(message: Message) -> int:
    """Bytes of a message of HTTP or of a WebSocket."""
    return len(message.get("body", b"")) + len(_data(message)) + _head(list(message.get("headers", ())))


def _data(message: Message) -> bytes:
    data: Any = message.get("bytes") or message.get("text") or b""
    return data.encode() if isinstance(data, str) else data
