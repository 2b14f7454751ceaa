"""Which models there are and which are loaded: /models/* and /api/v1/models/*."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.errors import InvalidField
from locallab.pool import Pool
from locallab.server.endpoint import Endpoint
from locallab.server.fields import read
from locallab.server.modelinfo import entry, figures
from locallab.server.reply import reply


class LoadBody(msgspec.Struct):
    model_id: str | None = None


class Models:
    """The routes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint("/models/current", self.current, tag="models"),
            Endpoint("/models/available", self.available, tag="models"),
            Endpoint("/models/load", self.load, method="POST", tag="models", body=LoadBody),
        ]

    async def current(self, request: Request) -> Response:
        """The model that answers now."""
        current = self._pool.current
        return reply(figures(self._pool, current) if current else {"name": None, "loaded": False, "status": "unloaded"})

    async def available(self, request: Request) -> Response:
        """Every model of the registry, and how it stands."""
        return reply({"models": [entry(self._pool, spec) for spec in self._pool.registry]})

    async def load(self, request: Request) -> Response:
        """Load a model; fetches it first where need be."""
        body = await read(request, LoadBody)
        if not body.model_id:
            raise InvalidField("model_id", "is missing")
        return reply(figures(self._pool, await self._pool.load(body.model_id)))
