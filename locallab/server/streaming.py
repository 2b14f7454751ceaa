"""Streams: sends what a generation yields as bytes that are ready-made, as server-sent events or as lines of JSON.

Not sse-starlette: it encodes every event as text, splits it into lines and runs four tasks a stream, on the very path that
shares its CPU cores with the model. Here a token is one concatenation, and all tokens that are ready are one write.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import ClassVar, Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from locallab.server.errors import report
from locallab.server.inference.generation import ClientGone, Generation, Item

IDLE = 15.0
"""Seconds of silence after which a ping keeps clients and proxies from closing the connection."""

DONE = b"data: [DONE]\n\n"

HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))

EVENTS = "text/event-stream"
LINES = "application/x-ndjson"


class Chunks(Protocol):
    """Formats one stream in its dialect; every method gives complete events.

    `ping` is one that says nothing. It is no comment: there are clients that parse those, and clients that count events.
    """

    def encode(self, items: list[Item]) -> bytes: ...
    def end(self) -> bytes: ...
    def fail(self, error: Exception) -> bytes: ...
    def ping(self) -> bytes: ...


class EventStream:
    """An ASGI response. It starts with the first news, so that an error before them still has a status of its own."""

    content_type: ClassVar[bytes] = EVENTS.encode() + b"; charset=utf-8"

    def __init__(self, generation: Generation, chunks: Chunks) -> None:
        self._generation = generation
        self._chunks = chunks
        self._sent = asyncio.get_running_loop().time()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self._generation
        with generation, generation.watching(receive), self._heartbeat():
            items = await generation.ready()
            headers = [(b"content-type", self.content_type), *HEADERS]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            with contextlib.suppress(ClientGone):
                try:
                    last = await self._send_all(items, send)
                except ClientGone:
                    raise
                except Exception as error:
                    report(error, f"{scope['method']} {scope['path']}")
                    last = self._chunks.fail(error)
                await send({"type": "http.response.body", "body": last})

    async def _send_all(self, items: list[Item], send: Send) -> bytes:
        """Sends events until the generation is done; returns the last ones unsent, to go out with the stream's end."""
        generation, chunks = self._generation, self._chunks
        while not generation.done:
            body = chunks.encode(items) if items else chunks.ping()
            if body:
                self._sent = asyncio.get_running_loop().time()
                await send({"type": "http.response.body", "body": body, "more_body": True})
            items = await generation.ready()
        return chunks.encode(items) + chunks.end()

    @contextlib.contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Wakes the generation when nothing was sent for `IDLE` seconds, by a timer that a token never has to touch."""
        loop = asyncio.get_running_loop()

        def beat() -> None:
            due = self._sent + IDLE
            if loop.time() >= due:
                self._generation.wake()
                due = loop.time() + IDLE
            timers[:] = [loop.call_at(due, beat)]

        timers = [loop.call_later(IDLE, beat)]
        try:
            yield
        finally:
            timers[0].cancel()


class LineStream(EventStream):
    """The same as lines of JSON."""

    content_type: ClassVar[bytes] = LINES.encode()


dumps = msgspec.json.Encoder().encode


def event(body: object) -> bytes:
    return b"data: " + dumps(body) + b"\n\n"
