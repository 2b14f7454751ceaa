"""uvicorn's HTTP protocol with limits on what a client may send, and the answers that it lacks.

A connection holds a few requests that wait for their turn and one read of bytes behind them; then it is not read until they
are answered. A head has a size and a time; a body has a time by its length. HTTP/1.0 gets streams without chunks, and a request
that offers HTTP/2 is answered by HTTP/1.1.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from locallab.server.connections import UNIX, ConnectionLimits, UnreadWatch, group

WAITING = 16
"""Maximum requests that wait on a connection behind the one that is answered. Further ones stay unparsed."""

HEAD_BYTES = 64 << 10
"""Maximum size of a request's target and header fields together, and of all that is neither head nor body, such as trailers."""

HEADERS = 128
"""Maximum number of a request's header fields."""

ARRIVAL = 30.0
"""Seconds for a request to arrive, its head and the first of its body; more is due with `BODY_RATE`."""

BODY_RATE = 16 << 10
"""Bytes of a body that buy another second for the rest."""

LINGER = 5.0
"""Seconds for the rest of a request that has been answered already."""

PIECE = 8 << 10
"""Bytes parsed at a time."""

CHUNKS = 1000
"""Chunks of a body parsed in a row; then others have their turn, since a chunk of one byte costs as much time as a long one."""

_HOP_BY_HOP = (b"upgrade", b"http2-settings")

log = logging.getLogger(__name__)


class _Refused(Exception):
    """Raised in the parser's callbacks: the request cannot be read any further."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Flow(FlowControl):
    """Reading stays paused while bytes are held back."""

    held = b""

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class HttpProtocol(HttpToolsProtocol):
    """A client's connection. `peer` is what connections are counted by, `since` the time of its last request or its start."""

    flow: _Flow

    def __init__(
        self, *arguments: Any, limits: ConnectionLimits, arrived: Callable[[], object] = lambda: None, **options: Any
    ) -> None:
        """`arrived` is called when the connection is made, before it is counted."""
        super().__init__(*arguments, **options)
        self._arrived = arrived
        self.logger = log
        self.peer = ""
        self.since = 0.0
        self._limits = limits
        self._unread = UnreadWatch()
        self._deadline: float | None = None  # for the request that is arriving
        self._spare = HEAD_BYTES  # bytes besides the body's that may still come
        self._head = 0
        self._in_head = True
        self._upgraded = False
        self._running: RequestResponseCycle | None = None
        self._chunks = 0  # parsed in a row
        self._going_on = False

    @property
    def idle(self) -> bool:
        """Whether no request has arrived that is not answered."""
        return (self.cycle is None or self.cycle.response_complete) and not self.pipeline

    def connection_made(self, transport: Any) -> None:
        self._arrived()
        super().connection_made(transport)
        self.flow = _Flow(transport)
        if self.client is None and isinstance(self.server, tuple) and self.server[1] is None:
            self.client = UNIX
        self.peer = group(self.client[0] if self.client else "")
        self.since = time.monotonic()  # unlike the loop's time, another one for each connection of a burst
        self._deadline = self.loop.time() + ARRIVAL
        if not self._limits.admit(self, self.connections):
            self._refuse(503, "there are too many connections, from this address or in all; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._running is not None:  # uvicorn tells only the last request that has arrived
            self._running.disconnected = not self._running.response_complete
            self._running.message_event.set()
        super().connection_lost(exc)

    def check(self, now: float) -> None:
        """Cut the connection if its request does not arrive in time, or its client does not read."""
        if self._unread.stuck(self.transport.get_write_buffer_size(), now):
            self.transport.abort()
        elif self._deadline is None or self.transport.is_closing():
            return
        elif self.flow.read_paused:
            self._deadline = now + ARRIVAL
        elif self._deadline < now:
            refused = self.cycle is not None and self.cycle.response_complete and self.cycle.more_body
            if refused or (self._in_head and self.idle and not self._head):
                self.transport.close()  # it has its answer, or has sent nothing: a browser keeps such connections in stock
            else:
                self._refuse(408, "the request did not arrive in time")

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deadline is None and self.idle:
            self._deadline = self.loop.time() + ARRIVAL
        if self.flow.held:
            self.flow.held += data
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Parse `data` in pieces with one head each, until enough requests wait or much has been parsed; hold the rest."""
        start = self._chunks = 0
        while start < len(data) and not self.transport.is_closing() and not self._upgraded:
            if len(self.pipeline) >= WAITING or self._chunks >= CHUNKS:
                self.flow.held = data[start:]
                self.flow.pause_reading()
                if self._chunks >= CHUNKS and not self._going_on:
                    self._going_on = True
                    self.loop.call_soon(self._go_on)
                return
            found = data.find(b"\r\n\r\n", start, start + PIECE)
            end = start + PIECE if found < 0 else found + 4
            self._feed(data[start:end])
            start = end

    def _go_on(self) -> None:
        """Parse what is held, once others have had their turn."""
        self._going_on = False
        if self.flow.held and not self.transport.is_closing():
            held, self.flow.held = self.flow.held, b""
            self._parse(held)
            if len(self.cycle.body if self.cycle else b"") <= HIGH_WATER_LIMIT:
                self.flow.resume_reading()

    def _feed(self, piece: bytes) -> None:
        self._spare -= len(piece)
        try:
            self.parser.feed_data(piece)
            if self._spare < 0:
                raise _Refused(431, f"the request has more than {HEAD_BYTES >> 10} KiB besides its body")
        except httptools.HttpParserUpgrade as upgrade:
            if not self._should_upgrade():
                self._ignore_upgrade(piece[upgrade.args[0] :])
            elif self.idle:
                self._upgraded = True
                self.handle_websocket_upgrade()
            else:
                self._refuse(400, "a WebSocket cannot begin behind a request that is not answered")
        except (httptools.HttpParserError, _Refused) as error:
            cause = error if isinstance(error, _Refused) else error.__context__
            if not isinstance(cause, _Refused):
                cause = _Refused(400, "invalid HTTP request")
            self._refuse(cause.status, str(cause))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Answer by HTTP/1.1 a request that offers to go on with another protocol: parse it anew without the offer."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = (each.strip() for each in value.split(b","))
                value = b", ".join(each for each in options if each.lower() not in _HOP_BY_HOP) or b"keep-alive"
            if name not in _HOP_BY_HOP:
                lines.append(b"%s: %s" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(b"\r\n".join([*lines, b"", b""]) + rest)

    def _should_upgrade(self) -> bool:
        return bool(self.parser.get_method() == b"GET" and super()._should_upgrade())

    def _offers_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer what cannot be read, unless an answer is under way, and close the connection."""
        log.info("%s: %s", self.client[0] if self.client else "-", reason)
        if not self.pipeline and (self.idle or not self.cycle.response_started):
            body = json.dumps({"detail": reason}).encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            retry = b"retry-after: 2\r\n" if status == 503 else b""
            self.transport.write(STATUS_LINE[status] + retry + head + body)
        self.transport.close()

    # The parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head = True, 0
        self._deadline = self.loop.time() + ARRIVAL

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer, which must not pass for a header field
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)
        if len(self.headers) > HEADERS:
            raise _Refused(431, f"the request has more than {HEADERS} header fields")
        if self.headers[-1][0] == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise _Refused(501, "the only transfer-encoding known here is chunked")

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > HEAD_BYTES:
            raise _Refused(431, f"the request's head is larger than {HEAD_BYTES >> 10} KiB")

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            raise _Refused(405, "this server is no proxy: CONNECT is not allowed")
        self._in_head, self._spare = False, HEAD_BYTES
        if not self._offers_upgrade():
            self.since = time.monotonic()
            super().on_headers_complete()
            if sum(len(cycle.body) for cycle, _ in self.pipeline) <= HIGH_WATER_LIMIT:
                self.flow.resume_reading()  # uvicorn pauses for a waiting request: a client that leaves must be noticed

    def on_body(self, body: bytes) -> None:
        self._chunks += 1
        self._spare += 17 * len(body)  # itself, and the frames of small chunks
        if self._deadline is not None and not self.cycle.response_complete:
            self._deadline += len(body) / BODY_RATE
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._offers_upgrade():
            self._deadline = None
            self._spare = HEAD_BYTES
            super().on_message_complete()

    # The answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if cycle.scope["http_version"] == "1.0":
            app = functools.partial(_without_chunks, cycle, app)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._deadline is not None:
            self._deadline = min(self._deadline, self.loop.time() + LINGER)
        if self.flow.held and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._go_on()


async def _without_chunks(cycle: RequestResponseCycle, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run `app` for a client of HTTP/1.0: the end of the connection is the end of its answer."""
    cycle.chunked_encoding = False

    def relay(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        return send(message)

    await app(scope, receive, relay)
