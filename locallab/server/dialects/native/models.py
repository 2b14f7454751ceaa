"""LocalLab's model routes: /models/*, and the same under /api/v1/models/."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.engine import Kind
from locallab.errors import InvalidField
from locallab.models.spec import Adapted, HubSource, MemoryClass, ModelSpec
from locallab.pool import Pool, Status
from locallab.pool.fitting import fitting
from locallab.pool.loaded import modalities_of
from locallab.server.dialects.answer_fields import Modalities
from locallab.server.dialects.native.client_lines import LOAD, LOADED, UNLOAD, UNLOADED, expected
from locallab.server.dialects.native.fit import FitReport, FreeMemory, ShortFit, fit_report, free_memory, short_fit
from locallab.server.dialects.native.system import KvLayout, MemoryKind, PrefixReuse, kv_facts
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import read
from locallab.server.reply import reply
from locallab.units import compact_bytes


class LoadBody(msgspec.Struct):
    model_id: Annotated[str, Meta(description="a name or an alias of the registry", extra_json_schema={"minLength": 1})]
    force: Annotated[bool | None, Meta(description="after the grace, end the requests of a model that must make room")] = None


class UnloadBody(msgspec.Struct):
    model_id: Annotated[str | None, Meta(description="a name or an alias of the registry; default: the current model")] = None
    force: Annotated[bool | None, Meta(description="after the grace, end the running requests")] = None


class Models:
    """The routes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def routes(self) -> list[BaseRoute]:
        change: dict[str, Any] = {
            "tag": "models",
            "method": "POST",
            "answer": ModelStatus,
            "errors": (404, 503),
            "admin": True,
        }
        return [
            Endpoint("/models/current", self.current, tag="models", answer=ModelStatus),
            Endpoint("/models/available", self.available, tag="models", answer=AvailableModels),
            Endpoint("/models/fit/{id}", self.fit, tag="models", answer=FitReport, errors=(404,)),
            Endpoint("/models/status/{id}", self.status, tag="models", answer=ModelStatus, errors=(404,)),
            Endpoint("/models/load", self.load, body=LoadBody, **change),
            Endpoint("/models/unload", self.unload, body=UnloadBody, **change),
            Endpoint("/api/v1/models/current", self.current, tag="models", answer=ModelStatus),
            Endpoint("/api/v1/models/available", self.available, tag="models", answer=AvailableModels),
        ]

    async def current(self, request: Request) -> Response:
        """Show the model that answers requests naming none."""
        return reply(current(self._pool))

    async def available(self, request: Request) -> Response:
        """List all registered models with their status, also with each of their adapters.

        The query `fit=true` adds how each fits this machine, if all loaded models make room for it.
        """
        fits = request.query_params.get("fit") == "true"
        return reply(await asyncio.to_thread(_listed, self._pool, fits))

    async def fit(self, request: Request) -> Response:
        """Show how a model fits this machine, as `locallab fit` does, if all loaded models make room for it."""
        spec = self._pool.registry.get(request.path_params["id"])
        return reply(await asyncio.to_thread(fit_report, self._pool, spec))

    async def status(self, request: Request) -> Response:
        """Show one registered model with its status."""
        return reply(standing(self._pool, self._pool.registry.get(request.path_params["id"])))

    async def load(self, request: Request) -> Response:
        """Load a model.

        Weights that are not on disk are downloaded first, and a model that must make room finishes its requests. The
        response comes when the model is ready; a client that disconnects does not stop the load.
        """
        body = await read(request, LoadBody)
        if not body.model_id:
            raise InvalidField("model_id", "is missing")
        loaded = await self._pool.load(body.model_id, force=bool(body.force))
        return reply(await expected(request, standing(self._pool, loaded.spec), LOAD, LOADED))

    async def unload(self, request: Request) -> Response:
        """Unload a model, and return its memory to the system.

        Running requests finish first. Nothing happens to a model that is not loaded.
        """
        body = await read(request, UnloadBody, empty=b"{}")
        before = self._pool.current
        model_id = body.model_id or (before.spec.id if before else None)
        described = NO_MODEL
        if model_id is not None:
            await self._pool.unload(model_id, force=bool(body.force))
            described = standing(self._pool, self._pool.registry.get(model_id))
        return reply(await expected(request, described, UNLOAD, UNLOADED))


def _listed(pool: Pool, fits: bool) -> AvailableModels:
    found = [available(pool, spec) for spec in pool.registry.with_adapters]
    if fits:
        machine = fitting(pool)
        for each in found:
            each.fit = short_fit(machine, pool.registry.get(each.name))
        return AvailableModels(found, free_memory(machine))
    return AvailableModels(found)


Size = Annotated[str, Meta(description="size of the weights' file, such as 98MB")]
Standing = Annotated[Status, Meta(description="error: the last load failed, see `error`")]


class AvailableModel(msgspec.Struct, kw_only=True):
    """A registered model with its status."""

    name: str
    size: Size
    context: Annotated[int | None, Meta(description="tokens one request may use; null: known once it is loaded")]
    description: str
    recommended: bool
    recommended_for: Annotated[
        tuple[MemoryClass, ...],
        Meta(description="machines by gigabytes of RAM or of GPU memory; if recommended, none: all"),
    ] = ()
    current: Annotated[bool, Meta(description="whether it answers requests that name no model")] = False
    license: str | None = None
    memory_bytes: Annotated[int | None, Meta(description="of a GPU or of RAM that it runs well in")] = None
    hub: Annotated[str | None, Meta(description="its repository on the Hub")] = None
    fit: Annotated[ShortFit | UnsetType, Meta(description="with the query fit=true")] = UNSET
    aliases: tuple[str, ...] = ()
    size_bytes: int | UnsetType | None = UNSET
    on_disk: Annotated[bool | UnsetType, Meta(description="whether the weights are on disk; a load fetches missing ones")] = (
        UNSET
    )
    loaded: bool | UnsetType = UNSET
    status: Standing | UnsetType = UNSET
    error: Annotated[str | UnsetType, Meta(description="why the last load failed")] = UNSET
    modalities: Modalities | UnsetType = UNSET
    parent: Annotated[str | UnsetType, Meta(description="of a model with an adapter: the model alone")] = UNSET


class AvailableModels(msgspec.Struct):
    """The registry."""

    models: list[AvailableModel]
    machine: Annotated[FreeMemory | UnsetType, Meta(description="with the query fit=true")] = UNSET


class ModelStatus(msgspec.Struct, kw_only=True):
    """The status of a model, with its figures once it is loaded."""

    name: Annotated[str | None, Meta(description="null: no model is loaded")]
    size: Size | None
    loaded: bool
    vram_usage: Annotated[
        str | None, Meta(description="GPU memory that the model takes, as measured; RAM on a machine without a GPU")
    ]
    status: Standing
    usage_of: Annotated[Literal["vram", "ram"] | UnsetType, Meta(description="the memory that vram_usage refers to")] = UNSET
    usage_bytes: Annotated[int | UnsetType, Meta(description="vram_usage in bytes")] = UNSET
    error: Annotated[str | UnsetType, Meta(description="why the last load failed")] = UNSET
    parent: Annotated[str | UnsetType, Meta(description="of a model with an adapter: the model alone")] = UNSET
    size_bytes: int | UnsetType | None = UNSET
    on_disk: bool | UnsetType = UNSET
    context: Annotated[int | UnsetType | None, Meta(description="tokens one request may use")] = UNSET
    description: str | UnsetType = UNSET
    recommended: bool | UnsetType = UNSET
    aliases: tuple[str, ...] | UnsetType = UNSET
    recommended_for: tuple[MemoryClass, ...] | UnsetType = UNSET
    current: bool | UnsetType = UNSET
    license: str | UnsetType | None = UNSET
    memory_bytes: Annotated[int | UnsetType | None, Meta(description="of a GPU or of RAM that it runs well in")] = UNSET
    active_bytes: Annotated[int | UnsetType | None, Meta(description="that one token reads, if they are fewer")] = UNSET
    hub: Annotated[str | UnsetType | None, Meta(description="its repository on the Hub")] = UNSET
    settings: Annotated[dict[str, Any] | UnsetType, Meta(description="engine settings of its entry")] = UNSET
    system: Annotated[str | UnsetType | None, Meta(description="system prompt of conversations without one")] = UNSET
    adapters: Annotated[dict[str, float] | UnsetType, Meta(description="LoRA adapters by name, with their scales")] = UNSET
    trained_context: int | UnsetType = UNSET
    kv_tokens: Annotated[int | UnsetType, Meta(description="tokens the KV pool holds for all requests together")] = UNSET
    parameters: int | UnsetType = UNSET
    architecture: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    device: str | UnsetType = UNSET
    memory_kind: MemoryKind = UNSET
    kv_layout: KvLayout = UNSET
    prefix_reuse: PrefixReuse | UnsetType = UNSET
    kind: Annotated[Kind | UnsetType, Meta(description="the kind of output")] = UNSET
    dimensions: Annotated[int | UnsetType, Meta(description="length of an embedding model's vectors")] = UNSET
    loaded_at: Annotated[int | UnsetType, Meta(description="seconds since the epoch")] = UNSET
    load_seconds: float | UnsetType = UNSET
    modalities: Modalities | UnsetType = UNSET


NO_MODEL = ModelStatus(name=None, size=None, loaded=False, vram_usage=None, status="unloaded")


def available(pool: Pool, spec: ModelSpec) -> AvailableModel:
    """Describe a registered model with its status."""
    loaded = pool.get(spec.id)
    size = pool.store.size(spec)
    return AvailableModel(
        name=spec.id,
        size=compact_bytes(size or spec.size),
        context=loaded.engine.info.context if loaded else spec.context,
        description=spec.description,
        recommended=bool(spec.recommended),
        recommended_for=() if isinstance(spec.recommended, bool) else spec.recommended,
        current=loaded is not None and pool.current is loaded,
        license=spec.license,
        memory_bytes=spec.memory,
        hub=spec.source.repo if isinstance(spec.source, HubSource) else None,
        aliases=spec.aliases,
        size_bytes=size or spec.size,
        on_disk=pool.store.has(spec),
        loaded=loaded is not None,
        status=pool.status(spec.id),
        error=pool.error(spec.id) or UNSET,
        modalities=modalities_of(spec, loaded, pool.store),
        parent=spec.parent if isinstance(spec, Adapted) else UNSET,
    )


def standing(pool: Pool, spec: ModelSpec) -> ModelStatus:
    """Describe a registered model with all known figures."""
    loaded = pool.get(spec.id)
    known = msgspec.structs.asdict(available(pool, spec))
    del known["fit"]
    known |= {"active_bytes": spec.active, "settings": dict(spec.settings), "system": spec.system}
    known["adapters"] = {each.name: each.scale for each in spec.adapters}
    if loaded is None:
        return ModelStatus(**{**known, "vram_usage": None})
    info, memory = loaded.engine.info, loaded.memory
    figures: dict[str, Any] = {
        "vram_usage": compact_bytes(memory.vram or memory.ram),
        "usage_of": "vram" if memory.vram else "ram",
        "usage_bytes": memory.vram or memory.ram,
        "trained_context": info.n_ctx_train,
        "kv_tokens": info.kv_tokens,
        "parameters": info.n_params,
        "architecture": info.architecture,
        "type": info.description,
        "device": info.device,
        **kv_facts(info),
        "kind": info.kind,
        "dimensions": info.dimensions or UNSET,
        "loaded_at": loaded.created,
        "load_seconds": round(loaded.seconds, 3),
    }
    return ModelStatus(**{**known, **figures})


def current(pool: Pool) -> ModelStatus:
    """Describe the model that answers requests naming none, or that the next of them reloads."""
    found = pool.current
    spec = found.spec if found else pool.default
    return standing(pool, spec) if spec else NO_MODEL
