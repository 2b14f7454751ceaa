"""The assistant over WebSocket: /api/v1/assistant/stream. server/conversation.py says what is spoken there."""

from __future__ import annotations

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import Receive, Scope, Send

from locallab.chat.tasks import Templates
from locallab.pool import Pool
from locallab.server.conversation import PATH, Conversation
from locallab.settings import ServerSettings


class Socket:
    """The route: an ASGI application of its own."""

    def __init__(self, pool: Pool, settings: ServerSettings, templates: Templates) -> None:
        self._pool = pool
        self._settings = settings
        self._templates = templates

    def routes(self) -> list[BaseRoute]:
        return [WebSocketRoute(PATH, self)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Conversation(self._pool, self._settings, self._templates, scope, receive, send).run()
