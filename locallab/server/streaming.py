"""Streams of events that are ready-made bytes, as server-sent events or as lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec
from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from locallab.server.errors import report
from locallab.server.inference.generation import ClientGone, Generation, Item
from locallab.server.reply import cache_headers

IDLE = 15.0
"""Seconds of silence after which a ping keeps clients and proxies from closing the connection."""

SEND_TIMEOUT = 60.0
"""Seconds after which a stream ends whose client does not read; noticed at a ping, so up to `IDLE` seconds later."""

DONE = b"data: [DONE]\n\n"

EVENTS = "text/event-stream"
LINES = "application/x-ndjson"

log = logging.getLogger(__name__)

# How long streams may go on at a stop is for `--grace` to say.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


class WholeFormatter(Protocol):
    """Formats the answers of one generation in a dialect: `whole` is a JSON body, after `take` got all items."""

    def take(self, items: list[Item]) -> None: ...
    def whole(self) -> object: ...


class Formatter(WholeFormatter, Protocol):
    """The same also for a stream: every method returns complete events.

    `ping` is an event without news. It is no comment: there are clients that parse those, and clients that count events.
    """

    def encode(self, items: list[Item]) -> bytes: ...
    def end(self) -> bytes: ...
    def fail(self, error: Exception) -> bytes: ...
    def ping(self) -> bytes: ...


Ending = Callable[[], Awaitable[None]]
"""Is awaited when an answer has been formatted to its end, before that is sent."""


class ByteStream(EventSourceResponse):
    """An EventSourceResponse whose content is bytes; of its headers it has only those that a stream needs."""

    def __init__(self, content: AsyncIterable[Any], media_type: str = EVENTS, **options: Any) -> None:
        super().__init__(content, media_type=media_type, send_timeout=SEND_TIMEOUT, **options)
        content_type = f"{media_type}; charset=utf-8" if media_type == EVENTS else media_type
        no_buffering = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
        self.raw_headers = [(b"content-type", content_type.encode()), *no_buffering]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.warning("%s %s: the client has not read for %g s", scope["method"], scope["path"], SEND_TIMEOUT)


class EventStream(ByteStream):
    """The answers of a generation as one stream, with a send loop that encodes nothing but new tokens.

    It starts with the first items, so that an error before them has a status of its own. All items that are ready are one
    write. Raises ClientGone when the client leaves before the start.
    """

    def __init__(
        self, generation: Generation, formatter: Formatter, media_type: str = EVENTS, ending: Ending | None = None
    ) -> None:
        super().__init__(generation, media_type, ping=IDLE, ping_message_factory=self._wake)
        self._generation = generation
        self._formatter = formatter
        self._sent = asyncio.get_running_loop().time()
        self._started = False
        self._last: bytes | None = None
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._request = f"{scope['method']} {scope['path']}"
        with self._generation:
            await super().__call__(scope, receive, send)
        if self._last is not None and self._ending is not None:
            await self._ending()
        if self._last is not None:  # sent behind the tasks of the stream, so that the request is over for client and server
            with contextlib.suppress(SendTimeoutError):
                await self._send_with_timeout(send, {"type": "http.response.body", "body": self._last, "more_body": False})
        elif not (self._started or self.active):
            raise ClientGone

    async def _stream_response(self, send: Send) -> None:
        generation, formatter, time = self._generation, self._formatter, asyncio.get_running_loop().time
        async with self._send_lock:  # what the ping task sends waits for the start
            items = await anext(generation)
            self._started = True
            self.headers.update(cache_headers(generation.cache))
            head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await self._send_with_timeout(send, head)
        try:
            while not generation.done:
                body = formatter.encode(items) if items else formatter.ping()
                if body:
                    self._sent = time()
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                items = await anext(generation)
            self._last = formatter.encode(items) + formatter.end()
        except Exception as error:
            report(error, self._request)
            self._last = formatter.fail(error)

    def _wake(self) -> bytes:
        """Let the send loop ping when nothing was sent for `IDLE` seconds: only there a ping has its place among the events.

        Returns nothing to send; sending that still notices a client that does not read. Mutates the ping interval.
        """
        left = self._sent + IDLE - asyncio.get_running_loop().time()
        if not self._started or left < 0.001:  # what is left may be rounding: uvloop counts milliseconds
            self._generation.wake()
            left = IDLE
        self.ping_interval = left
        return b""


dumps = msgspec.json.Encoder().encode


def event(body: object) -> bytes:
    """Return a server-sent event."""
    return b"data: " + dumps(body) + b"\n\n"


def typed_event(body: Mapping[str, Any]) -> bytes:
    """Return a server-sent event with the name that its body has as `type`."""
    kind: str = body["type"]
    return b"event: " + kind.encode() + b"\n" + event(body)


def line(body: object) -> bytes:
    """Return a line of JSON."""
    return dumps(body) + b"\n"
