"""uvicorn's WebSocket protocol, with a stop that lets running requests end, and a log that tells no keys."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

RESTARTING = 1012
"""The code by which the app and its clients learn that the server stops."""

log = logging.getLogger(__name__)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """When the server stops, the app hears of it as of a client that leaves, with the code 1012, and may go on sending: it is
    the app that closes the connection, once what runs has ended."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = log  # uvicorn's own tells the whole path and, when debugging, the headers
        self.conn.logger, self.conn.debug = log, False

    def shutdown(self) -> None:
        if self.handshake_complete and not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": RESTARTING})
        else:
            super().shutdown()

    def send(self, message: Any) -> Coroutine[Any, Any, None]:  # no coroutine of its own: every token passes here
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # a refusal is an answer; uvicorn complains of it as of none
        return super().send(message)
