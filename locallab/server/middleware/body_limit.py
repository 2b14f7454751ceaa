"""Limit of a request body, enforced while it is read: its declared length may be missing or false."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Raise HTTPException 413 inside the app, which answers in its dialect, when it reads a body of more than `mib` MiB."""

    def __init__(self, app: ASGIApp, mib: int) -> None:
        self._app = app
        self._limit = mib << 20
        # Close: the rest of the body would be parsed as the next request, or fill the memory.
        self._refusal = HTTPException(413, f"the request body is larger than {mib} MiB", {"connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        size = 0

        async def limited() -> Message:
            nonlocal size
            if declared.isdecimal() and int(declared) > self._limit:
                raise self._refusal
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limit:
                raise self._refusal
            return message

        await self._app(scope, limited, send)
