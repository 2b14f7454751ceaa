"""Which models there are and which are loaded: /models/* and /api/v1/models/*."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.errors import InvalidField
from locallab.pool import Pool
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import parse, read
from locallab.server.modelinfo import NO_MODEL, AvailableModels, ModelStatus, available, current, standing
from locallab.server.reply import reply


class LoadBody(msgspec.Struct):
    model_id: Annotated[str, Meta(description="a name or an alias of the registry", extra_json_schema={"minLength": 1})]
    force: Annotated[bool | None, Meta(description="end the requests of a model that must make room, after the grace")] = None


class UnloadBody(msgspec.Struct):
    model_id: Annotated[str | None, Meta(description="a name or an alias of the registry; left out: the current model")] = None
    force: Annotated[bool | None, Meta(description="end the requests that run, after the grace")] = None


class Models:
    """The routes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint("/models/current", self.current, tag="models", answer=ModelStatus),
            Endpoint("/models/available", self.available, tag="models", answer=AvailableModels),
            Endpoint("/models/status/{id}", self.status, tag="models", answer=ModelStatus, errors=(404,)),
            Endpoint(
                "/models/load", self.load, tag="models", method="POST", body=LoadBody, answer=ModelStatus, errors=(404, 503)
            ),
            Endpoint(
                "/models/unload",
                self.unload,
                tag="models",
                method="POST",
                body=UnloadBody,
                answer=ModelStatus,
                errors=(404, 503),
            ),
            Endpoint("/api/v1/models/current", self.current, tag="models", answer=ModelStatus),
            Endpoint("/api/v1/models/available", self.available, tag="models", answer=AvailableModels),
        ]

    async def current(self, request: Request) -> Response:
        """The model that answers requests naming none."""
        return reply(current(self._pool))

    async def available(self, request: Request) -> Response:
        """Every model of the registry, and how it stands."""
        return reply(AvailableModels([available(self._pool, spec) for spec in self._pool.registry]))

    async def status(self, request: Request) -> Response:
        """One model of the registry, and how it stands."""
        return reply(standing(self._pool, self._pool.registry.get(request.path_params["id"])))

    async def load(self, request: Request) -> Response:
        """Load a model.

        Its weights are fetched first where need be, and the requests of a model that must make room are waited for. The
        answer comes when the model is ready; a client that does not wait for it stops nothing.
        """
        body = await read(request, LoadBody)
        if not body.model_id:
            raise InvalidField("model_id", "is missing")
        loaded = await self._pool.load(body.model_id, force=bool(body.force))
        return reply(standing(self._pool, loaded.spec))

    async def unload(self, request: Request) -> Response:
        """Unload a model, and return its memory to the system.

        The requests that run are waited for. A model that is not loaded stays so.
        """
        body = parse(await request.body() or b"{}", UnloadBody)
        before = self._pool.current
        model_id = body.model_id or (before.spec.id if before else None)
        if model_id is None:
            return reply(NO_MODEL)
        await self._pool.unload(model_id, force=bool(body.force))
        return reply(standing(self._pool, self._pool.registry.get(model_id)))
