"""uvicorn's WebSocket protocol with a graceful shutdown, limits on what a client may send, and without keys in the log.

A client is read as fast as the app takes its messages, as it reads what is sent to it, and at most `FRAMES` frames a second:
what comes faster stays in its socket. The messages that one address has begun and not ended have a bound together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from locallab.server.connections import UNIX, UnreadWatch, group

RESTARTING = 1012
"""Close code for the app and its clients when the server stops."""

CROWDED = 1013
"""Close code for a client whose address is sending too much at once: it may try again later."""

AT_ONCE = 4
"""Messages of the largest size that one address may be sending: each of its many connections could hold most of one."""

SMALL = 256 << 10
"""Bytes of a message up to which it does not count for that."""

FRAMES = 200
"""Maximum frames of a client in a second, pings and parts of messages included."""

PIECE = 512
"""Bytes parsed at a time: the messages in one piece wait for the app together."""

log = logging.getLogger(__name__)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """On shutdown the app receives a disconnect with code 1012 and may still send; it closes the connection after its last
    message. `unfinished` is the size in bytes of a large message that has begun to arrive."""

    idle = False
    """Its place is never given to another connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = log  # uvicorn's own logs the query and, when debugging, the headers
        self.conn.logger, self.conn.debug = log, False
        self.peer = ""
        self.since = 0.0
        self.unfinished = 0
        self._unread = UnreadWatch()
        self._held = b""
        self._frames = 0
        self._second = 0.0
        self._resume: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.client is None and isinstance(self.server, tuple) and self.server[1] is None:
            self.client = UNIX
        self.peer = group(self.client[0] if self.client else "")
        self.since = time.monotonic()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        if self._resume is not None:
            self._resume.cancel()
        super().connection_lost(exc)

    def check(self, now: float) -> None:
        """Cut the connection if its client does not read."""
        if self._unread.stuck(self.transport.get_write_buffer_size(), now):
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._held += data
        self._take()

    def _take(self) -> None:
        """Parse held bytes until the app has a message to take, the client has much to read, or the second's frames are used
        up."""
        data, start = self._held, 0
        while start < len(data) and not self._is_full():
            super().data_received(data[start : start + PIECE])
            start += PIECE
            if self.conn.handshake_exc is not None and not self.handshake_initiated:
                self._refuse(self.conn.handshake_exc)
        self._held = data[start:]
        self._count_unfinished()
        if self.transport.is_closing():
            return
        if self._held:
            self.transport.pause_reading()
        elif not self.read_paused:
            self.transport.resume_reading()

    def _count_unfinished(self) -> None:
        size = sum(map(len, self.frames)) + len(self.conn.reader.buffer)
        self.unfinished = size if size > SMALL else 0
        if not self.unfinished or self.transport.is_closing():
            return
        mine = (each for each in self.connections if isinstance(each, WebSocketProtocol) and each.peer == self.peer)
        if sum(each.unfinished for each in mine) > AT_ONCE * self.config.ws_max_size:
            log.info("%s: too many large WebSocket messages at once", self.peer)
            self.queue.put_nowait({"type": "websocket.disconnect", "code": CROWDED})
            self.conn.send_close(CROWDED, "this address is sending too many large messages at once; try again later")
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.transport.close()
            self._forget()

    def _forget(self) -> None:
        self._held, self.unfinished = b"", 0
        self.frames.clear()
        self.conn.reader.buffer.clear()

    def _refuse(self, error: Exception) -> None:
        """Answer a handshake that cannot be read, which uvicorn leaves open."""
        refusal = self.conn.reject(HTTPStatus.BAD_REQUEST, f"not a WebSocket handshake: {error}")
        self.transport.write(refusal.serialize())
        self.close_sent = True
        self.transport.close()

    def _is_full(self) -> bool:
        if self._resume is not None or self.read_paused or not self.writable.is_set() or self.transport.is_closing():
            return True
        if self._frames < FRAMES:
            return False
        now = self.loop.time()
        if now < self._second + 1:
            self._resume = self.loop.call_at(self._second + 1, self._go_on)
            return True
        self._frames, self._second = 0, now
        return False

    def _go_on(self) -> None:
        self._resume = None
        self._take()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._take()

    async def receive(self) -> Any:
        message = await super().receive()
        if self._held and not self.read_paused:
            self._take()
        return message

    def handle_events(self) -> None:
        self._frames += len(self.conn.events)
        super().handle_events()

    def shutdown(self) -> None:
        if self.handshake_complete and not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": RESTARTING})
        else:
            super().shutdown()

    def send(self, message: Any) -> Coroutine[Any, Any, None]:  # not a coroutine: it runs for every token
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # uvicorn would log a refusal as a missing answer
        return super().send(message)
