"""A WebSocket route that counts each message like the assistant's and echoes it, for tests of middleware."""

from __future__ import annotations

import logging
from typing import Any

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from locallab.errors import RateLimited


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    key: Any = socket.state.key
    logging.getLogger("locallab.echo").info("opened")
    try:
        while True:
            text = await socket.receive_text()
            try:
                headers = await socket.state.count()
            except RateLimited as error:
                await socket.send_json({"refused": str(error), "retry_after": error.retry_after})
                continue
            counted = {name.decode(): value.decode() for name, value in headers}
            await socket.send_json({"text": text, "key": key and key.name, "query": str(socket.query_params), **counted})
    except WebSocketDisconnect as gone:
        logging.getLogger("locallab.echo").info("closed with %d", gone.code)


ROUTES = [WebSocketRoute("/api/v1/echo", echo)]
PATH = "/api/v1/echo"
