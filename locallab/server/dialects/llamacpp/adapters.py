"""The LoRA adapters of a model, as in llama.cpp's server: /lora-adapters."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.errors import RequestError
from locallab.pool import Pool
from locallab.server.dialects.llamacpp.props import named
from locallab.server.endpoint import Endpoint
from locallab.server.fields.sampling import LoraScale
from locallab.server.reply import reply


class LoraAdapter(msgspec.Struct):
    """A LoRA adapter that the model was loaded with."""

    id: Annotated[int, Meta(description="its id in the field lora of requests")]
    path: Annotated[str, Meta(description="its name, by which MODEL:NAME chooses it; the path of its file is private")]
    scale: Annotated[float, Meta(description="its scale for requests that choose no adapter; 0: off")]
    task_name: Annotated[str, Meta(description="what it is for, if its file says so")]
    prompt_prefix: Annotated[str, Meta(description="what prompts should begin with, if its file says so")]


class Success(msgspec.Struct):
    success: bool


class AdapterRoutes:
    """The routes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def routes(self) -> list[BaseRoute]:
        common: dict[str, Any] = {"tag": "llama.cpp", "errors": (404, 503)}
        return [
            Endpoint("/lora-adapters", self.adapters, answer=list[LoraAdapter], **common),
            Endpoint(
                "/lora-adapters", self.activate, method="POST", body=list[LoraScale], answer=Success, admin=True, **common
            ),
        ]

    async def adapters(self, request: Request) -> Response:
        """List the adapters of the current model, or of the loaded one that `?model=` names."""
        loaded = named(self._pool, request)
        if loaded is None or not loaded.engine.info.adapters:
            return reply([])
        scales = dict(loaded.text_engine.active.scales)
        return reply(
            [
                LoraAdapter(id, each.name, scales.get(id, 0.0), each.task, each.prompt_prefix)
                for id, each in enumerate(loaded.engine.info.adapters)
            ]
        )

    async def activate(self, request: Request) -> Response:
        """Set the scales of the adapters for requests that choose none; those that are not named are off.

        It holds until the model is unloaded. A model that is named with an adapter keeps that.
        """
        loaded = named(self._pool, request)
        if loaded is None:
            raise RequestError("no model is loaded, so there are no adapters")
        try:
            scales = msgspec.json.decode(await request.body(), type=list[LoraScale])
        except msgspec.ValidationError as error:
            raise RequestError(f"the body is wrong: expected a list of objects with id and scale: {error}") from None
        except msgspec.DecodeError as error:
            raise RequestError(f"the body is not valid JSON: {error}") from None
        loaded.text_engine.activate([(each.id, each.scale) for each in scales])
        return reply(Success(True))
