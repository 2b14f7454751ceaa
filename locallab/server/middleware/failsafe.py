"""Last resort for unhandled exceptions: the log gets the traceback, the client only a generic message."""

from __future__ import annotations

import logging
from collections.abc import Awaitable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.errors import AccessError, KeysUnreadable
from locallab.server.errors import refuse

log = logging.getLogger(__name__)


class Failsafe:
    """Answer refusals of the inner middleware, and unexpected exceptions with 500; a WebSocket is then not accepted.

    After the first byte it can only end the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        started = False

        def relay(message: Message) -> Awaitable[None]:  # not a coroutine: it runs for every token
            nonlocal started
            started = True
            return send(message)

        try:
            await self._app(scope, receive, relay)
        except ClientDisconnect:
            pass  # while sending its request: nobody to answer
        except Exception as error:
            if started:
                raise  # the server logs it and closes the connection
            if not isinstance(error, (AccessError, KeysUnreadable)):
                log.exception("%s %s failed", scope.get("method", "WS"), scope["path"])
            await refuse(scope, receive, send, error)
