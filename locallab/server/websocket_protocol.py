"""uvicorn's WebSocket protocol with a graceful shutdown, and without keys in the log."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

RESTARTING = 1012
"""Close code for the app and its clients when the server stops."""

log = logging.getLogger(__name__)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """On shutdown the app receives a disconnect with code 1012 and may still send; it closes the connection after its last
    message."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = log  # uvicorn's own logs the query and, when debugging, the headers
        self.conn.logger, self.conn.debug = log, False

    def shutdown(self) -> None:
        if self.handshake_complete and not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": RESTARTING})
        else:
            super().shutdown()

    def send(self, message: Any) -> Coroutine[Any, Any, None]:  # not a coroutine: it runs for every token
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # uvicorn would log a refusal as a missing answer
        return super().send(message)
