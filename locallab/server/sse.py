"""Server-sent events: sends what a generation yields as bytes that are ready-made.

Not sse-starlette: it encodes every event as text, splits it into lines and runs four tasks a stream, on the very path that
shares its CPU cores with the model. Here a token is one concatenation, and all tokens that are ready are one write.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol

from starlette.types import Receive, Scope, Send

from locallab.server.errors import report
from locallab.server.generate import ClientGone, Generation, Item

IDLE = 15.0
"""Seconds without news after which a comment keeps proxies from closing the connection."""

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Chunks(Protocol):
    """Formats one stream in its dialect; every method gives complete events."""

    def encode(self, items: list[Item]) -> bytes: ...
    def end(self) -> bytes: ...
    def fail(self, error: Exception) -> bytes: ...


class EventStream:
    """An ASGI response. It starts with the first news, so that an error before them still has a status of its own."""

    def __init__(self, generation: Generation, chunks: Chunks) -> None:
        self._generation = generation
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self._generation
        with generation, generation.watching(receive), _heartbeat(generation):
            items = await generation.ready()
            await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS]})
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
            body = chunks.encode(items) if items else PING
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            items = await generation.ready()
        return chunks.encode(items) + chunks.end()


@contextlib.contextmanager
def _heartbeat(generation: Generation) -> Iterator[None]:
    """Wakes the generation after `IDLE` seconds without news, by a timer that a token never has to touch."""
    loop = asyncio.get_running_loop()

    def beat() -> None:
        due = generation.heard + IDLE
        if loop.time() >= due:
            generation.wake()
            due = loop.time() + IDLE
        timers[:] = [loop.call_at(due, beat)]

    timers = [loop.call_later(IDLE, beat)]
    try:
        yield
    finally:
        timers[0].cancel()
