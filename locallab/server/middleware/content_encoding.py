"""Compressed request bodies, decoded while they are read."""

from __future__ import annotations

import zlib
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PIECE = 64 << 10
"""Maximum size of a decoded piece: a small body may stand for a very large one."""

MEMBERS = 1024
"""Maximum members of a gzip body: empty ones decode to nothing, so that no limit on the body stops them."""

_CODINGS = ("gzip", "x-gzip", "deflate")


class _Decoder:
    """Decodes one body in pieces. Raises HTTPException 400 for bytes that are not of the coding."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._zlib: Any = None
        self._rest = b""
        self._members = 0

    def feed(self, data: bytes) -> None:
        self._rest += data

    def next(self) -> bytes:
        """Return the next piece; nothing if more bytes are needed, or if the body has ended."""
        while len(self._rest) > 1 or (self._rest and self._zlib):
            if self._zlib is None or (self._zlib.eof and self._coding != "deflate"):  # gzip may have several members
                self._zlib = zlib.decompressobj(self._window())
                self._members += 1
                if self._members > MEMBERS:
                    raise self._invalid(f"has more than {MEMBERS:,} gzip members")
            try:
                piece: bytes = self._zlib.decompress(self._rest, PIECE)
            except zlib.error:
                raise self._invalid() from None
            self._rest = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail
            if piece:
                return piece
            if self._zlib.eof and self._coding == "deflate":
                break
        return b""

    def _window(self) -> int:
        if self._coding != "deflate":
            return zlib.MAX_WBITS | 16
        framed = self._rest[0] & 15 == 8 and int.from_bytes(self._rest[:2], "big") % 31 == 0
        return zlib.MAX_WBITS if framed else -zlib.MAX_WBITS  # many clients leave out zlib's frame

    def end(self) -> None:
        """Check that the body is complete, with nothing behind it."""
        if self._rest or (self._zlib is not None and not self._zlib.eof):
            raise self._invalid()

    def _invalid(self, reason: str = "") -> HTTPException:
        problem = reason or f"is not valid {self._coding}"
        return HTTPException(400, f"the request body {problem}", {"connection": "close"})


class ContentDecoding:
    """Decode bodies in gzip and deflate; raise HTTPException 415 inside the app for other codings.

    The limit of bodies applies behind it too, to what the app reads.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        coding = ""
        if scope["type"] == "http":
            coding = ", ".join(Headers(scope=scope).getlist("content-encoding")).strip().lower()
        if coding not in ("", "identity"):
            names = (b"content-encoding", b"content-length")
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] not in names]}
            receive = _decoding(coding, receive)
        await self._app(scope, receive, send)


def _decoding(coding: str, receive: Receive) -> Receive:
    """Return a `receive` of the decoded body, and then of what comes behind it: that the client has left."""
    decoder = _Decoder(coding) if coding in _CODINGS else None
    more, ended = True, False

    async def decoded() -> Message:
        nonlocal more, ended
        if decoder is None:
            reason = f"content-encoding {coding!r} is not supported; send gzip, deflate, or the body as it is"
            raise HTTPException(415, reason, {"accept-encoding": "gzip, deflate", "connection": "close"})
        while not ended:
            if piece := decoder.next():
                return {"type": "http.request", "body": piece, "more_body": True}
            if not more:
                ended = True
                decoder.end()
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await receive()
            if message["type"] != "http.request":
                return message
            decoder.feed(message.get("body", b""))
            more = message.get("more_body", False)
        return await receive()

    return decoded
