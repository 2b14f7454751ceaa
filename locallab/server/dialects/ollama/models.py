"""Ollama's model routes: /api/tags, /api/show, /api/ps, /api/pull, /api/delete, /api/version."""

from __future__ import annotations

import asyncio
import datetime
import functools
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.chat.reasoning import tags_of
from locallab.chat.tools import choose
from locallab.chat.tools.formats.generic import Generic
from locallab.chat.tools.formats.harmony import Harmony
from locallab.errors import InvalidField, ModelLoadError, UnknownModel
from locallab.models import gguf
from locallab.models.quants import label
from locallab.models.registry import Registry
from locallab.models.spec import Adapted, ModelSpec
from locallab.pool import Loaded, Pool
from locallab.pool.loaded import modalities_of
from locallab.pool.removal import remove
from locallab.server.dialects.ollama.fields import PULL, SHOW
from locallab.server.dialects.ollama.pull import Pull, PullStream, last_status
from locallab.server.dialects.ollama.stream import rfc3339
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import read
from locallab.server.fields.table import Others, alias
from locallab.server.reply import reply
from locallab.server.roles import require_admin
from locallab.server.streaming import LINES
from locallab.settings import ServerSettings
from locallab.units import compact_count
from locallab.version import __version__

NEVER = "9999-12-31T23:59:59Z"
TEMPLATE = "tokenizer.chat_template"
EMBEDS = "embeds"
"""Not a key of the metadata: whether the model makes embeddings, as concluded from it."""
SENSES = {"image": "vision", "audio": "audio"}
"""Capabilities of models that take more than text."""
FIM_KEYS = ("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id")

Moment = Annotated[str, Meta(description="as in RFC 3339")]


class Details(msgspec.Struct, kw_only=True):
    """Details of a model; unknown ones are empty."""

    parent_model: str = ""
    format: str = "gguf"
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Card(msgspec.Struct, kw_only=True):
    name: str
    model: str
    size: Annotated[int, Meta(description="bytes: of the file, or in a listing of loaded models of memory")]
    digest: Annotated[str, Meta(description="digest of the file if known, else of its name, size and time")]
    details: Details
    modified_at: Moment | UnsetType = UNSET
    expires_at: Annotated[str | UnsetType, Meta(description="when it is unloaded unless it gets a request")] = UNSET
    size_vram: int | UnsetType = UNSET
    context_length: Annotated[int | UnsetType, Meta(description="tokens one request may use")] = UNSET


class Cards(msgspec.Struct):
    models: list[Card]


class Shown(msgspec.Struct, kw_only=True):
    """One model in full."""

    modelfile: str
    parameters: Annotated[str, Meta(description="one setting per line")]
    template: Annotated[str, Meta(description="the chat template, in Jinja")]
    details: Details
    model_info: Annotated[dict[str, Any], Meta(description="metadata of the file, with the served context_length")]
    capabilities: list[str]
    modified_at: Moment | UnsetType = UNSET


def on_disk(pool: Pool) -> Cards:
    """List the models that are on disk or loaded. Reads files."""
    cards = []
    for spec in pool.registry.with_adapters:
        if pool.store.has(spec) or pool.get(spec.id):
            path = pool.store.path(spec)
            card = Card(
                name=spec.id,
                model=spec.id,
                modified_at=_modified(path) if path else UNSET,
                size=pool.store.size(spec) or spec.size or 0,
                digest=digest(pool, spec),
                details=_details(pool, spec),
            )
            cards.append(card)
    return Cards(cards)


def running(pool: Pool) -> Cards:
    """List the loaded models, last used first."""
    cards = []
    for loaded in pool.loaded:
        left, memory = pool.seconds_left(loaded.spec.id), loaded.memory
        now = datetime.datetime.now(datetime.timezone.utc)
        card = Card(
            name=loaded.spec.id,
            model=loaded.spec.id,
            size=memory.ram + memory.vram or loaded.engine.info.size_bytes,
            digest=digest(pool, loaded.spec),
            details=_details(pool, loaded.spec),
            expires_at=NEVER if left is None else rfc3339(now + datetime.timedelta(seconds=left)),
            size_vram=memory.vram,
            context_length=loaded.engine.info.context,
        )
        cards.append(card)
    return Cards(cards)


def shown(pool: Pool, spec: ModelSpec) -> Shown:
    """Describe one registered model. Reads its file."""
    path = pool.store.path(spec)
    loaded, facts = pool.get(spec.id), _facts(path)
    template = (loaded.engine.info.chat_template if loaded else facts.get(TEMPLATE)) or ""
    context = loaded.engine.info.context if loaded else spec.context
    takes = modalities_of(spec, loaded, pool.store)
    family = _family(loaded, facts)
    info = {key: value for key, value in facts.items() if key not in (TEMPLATE, EMBEDS)}
    if family:
        info |= {"general.architecture": family, "general.parameter_count": _parameters(loaded, facts)}
        info |= {f"{family}.context_length": context} if context is not None else {}
    return Shown(
        modelfile=f"FROM {spec.id}",
        parameters=f"num_ctx {context}" if context is not None else "",
        template=template,
        details=_details(pool, spec),
        model_info=info,
        capabilities=_capabilities(loaded, facts, template) + [SENSES[each] for each in takes if each in SENSES],
        modified_at=_modified(path) if path else UNSET,
    )


def untagged(registry: Registry, name: str) -> str:
    """Return the name in the registry, without the tag that Ollama's clients add to names without one."""
    try:
        return registry.get(name).id
    except UnknownModel:
        return name.removesuffix(":latest")


def named(pool: Pool, name: str | None, *, strict: bool) -> ModelSpec | None:
    """Find the model of this name; without a name, or unless `strict` for an unknown one, the default model, if any.

    Raises UnknownModel.
    """
    try:
        return pool.registry.get(untagged(pool.registry, name)) if name else pool.default
    except UnknownModel:
        if strict:
            raise
        return pool.default


def check_load(request: Request, pool: Pool, name: str | None, *, strict: bool) -> None:
    """Raise AdminRequired if a request that only loads a model would load one, and its key may not."""
    spec = named(pool, name, strict=strict)
    if spec is not None and pool.get(spec.id) is None:
        require_admin(request, "loading a model")


def _details(pool: Pool, spec: ModelSpec) -> Details:
    path, loaded = pool.store.path(spec), pool.get(spec.id)
    facts = _facts(path)
    family = _family(loaded, facts)
    return Details(
        parent_model=spec.parent if isinstance(spec, Adapted) else "",
        family=family,
        families=[family] if family else [],
        parameter_size=compact_count(_parameters(loaded, facts)),
        quantization_level=label(path.name) if path else "",
    )


def _family(loaded: Loaded | None, facts: Mapping[str, Any]) -> str:
    return loaded.engine.info.architecture if loaded else str(facts.get("general.architecture", ""))


def _parameters(loaded: Loaded | None, facts: Mapping[str, Any]) -> int:
    return loaded.engine.info.n_params if loaded else int(facts.get("general.parameter_count", 0))


def _capabilities(loaded: Loaded | None, facts: Mapping[str, Any], template: str) -> list[str]:
    """List what the model was trained for; tools also work with other models that generate text, if less well."""
    if loaded.engine.info.kind != "text" if loaded else facts.get(EMBEDS):
        return ["embedding"]
    tool_format = choose(template)
    thinks = tags_of(template) is not None or isinstance(tool_format, Harmony)
    fills = loaded.engine.info.fim is not None if loaded else any(key in facts for key in FIM_KEYS)
    known = {"completion": True, "tools": not isinstance(tool_format, Generic), "insert": fills, "thinking": thinks}
    return [name for name, holds in known.items() if holds]


def digest(pool: Pool, spec: ModelSpec) -> str:
    """Return the digest of the model's file if it is known, else one of its name, size and time."""
    record = pool.store.record(spec)
    known = record.files[0].sha256 if record and len(record.files) == 1 else getattr(spec.source, "sha256", None)
    path = pool.store.path(spec)
    identity = (spec.id, pool.store.size(spec), path.stat().st_mtime if path else None)
    own = None if isinstance(spec, Adapted) else known
    return own or hashlib.sha256(repr(identity).encode()).hexdigest()


def _facts(path: Path | None) -> Mapping[str, Any]:
    """Return the file's metadata; empty for a file that is missing or cannot be read."""
    return _read(path, path.stat().st_mtime_ns) if path else {}


@functools.lru_cache(maxsize=256)
def _read(path: Path, modified: int) -> Mapping[str, Any]:
    """Read a file's metadata; `modified` makes a changed file another cache entry."""
    try:
        header = gguf.read(path)
    except ModelLoadError:
        return {}
    count = sum(math.prod(tensor.shape) for tensor in header.tensors)
    return {**header.metadata, "general.parameter_count": count, EMBEDS: header.embeds}


def _modified(path: Path) -> str:
    return rfc3339(datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.timezone.utc))


VERSION = "0.12.6"
"""The version of Ollama whose API this is; some clients refuse older ones."""


class ShowBody(msgspec.Struct):
    model: Annotated[str | None, Meta(description="a name or an alias of the registry")] = None
    name: Annotated[str | None, alias("model")] = None

    OTHERS: ClassVar[Others] = SHOW


class PullBody(ShowBody):
    stream: Annotated[bool | None, Meta(description="false: respond once the download is complete")] = None

    OTHERS: ClassVar[Others] = PULL


class DeleteBody(ShowBody):
    OTHERS: ClassVar[Others] = {}


class Freed(msgspec.Struct):
    freed_bytes: Annotated[int, Meta(ge=0)]


class Version(msgspec.Struct):
    version: Annotated[str, Meta(description="version of Ollama's API")]
    locallab: str


class PullStatus(msgspec.Struct):
    """The progress of a download."""

    status: str
    digest: str | UnsetType = UNSET
    total: Annotated[int | UnsetType, Meta(description="total bytes, if known")] = UNSET
    completed: Annotated[int | UnsetType, Meta(description="bytes downloaded")] = UNSET


class OllamaModels:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint("/api/tags", self.tags, tag="ollama", answer=Cards),
            Endpoint("/api/ps", self.ps, tag="ollama", answer=Cards),
            Endpoint("/api/version", self.version, tag="ollama", answer=Version),
            Endpoint("/api/show", self.show, tag="ollama", method="POST", body=ShowBody, answer=Shown, errors=(404,)),
            Endpoint(
                "/api/pull",
                self.pull,
                tag="ollama",
                method="POST",
                body=PullBody,
                answer=PullStatus,
                streams=True,
                stream_type=LINES,
                errors=(404, 503),
                admin=True,
            ),
            Endpoint(
                "/api/delete",
                self.delete,
                tag="ollama",
                method="DELETE",
                body=DeleteBody,
                answer=Freed,
                errors=(404, 409),
                admin=True,
            ),
        ]

    async def tags(self, request: Request) -> Response:
        """List the models on this machine."""
        return reply(await asyncio.to_thread(on_disk, self._pool))

    async def ps(self, request: Request) -> Response:
        """List the loaded models, and when they expire."""
        return reply(await asyncio.to_thread(running, self._pool))

    async def version(self, request: Request) -> Response:
        """Show the version of Ollama's API."""
        return reply(Version(VERSION, __version__))

    async def show(self, request: Request) -> Response:
        """Show one model: its template, context and capabilities."""
        name = _name(await read(request, ShowBody))
        spec = named(self._pool, name, strict=self._settings.strict_models)
        if spec is None:
            raise UnknownModel(name)
        return reply(await asyncio.to_thread(shown, self._pool, spec))

    async def pull(self, request: Request) -> ASGIApp:
        """Download a model without loading it.

        It is a registered one, or one of the Hub such as hf:owner/repo:Q4_K_M, which is registered then. A client that
        disconnects ends the download; the next one goes on with what is there.
        """
        body = await read(request, PullBody)
        registry, name = self._pool.registry, _name(body)
        spec = registry.of_the_hub(untagged(registry, name))
        is_new = all(each.id != spec.id for each in registry.with_adapters)
        known = await asyncio.to_thread(digest, self._pool, spec)
        pull = Pull(lambda progress: self._pool.pull(spec, progress), known, lambda: is_new and registry.resolve(name))
        return reply(await last_status(pull, request.receive)) if body.stream is False else PullStream(pull)

    async def delete(self, request: Request) -> Response:
        """Remove a model's weights from disk.

        The model is unloaded first, once its requests have ended, with those that share its files. It stays in the registry.
        """
        model_id = untagged(self._pool.registry, _name(await read(request, DeleteBody)))
        return reply(Freed(await remove(self._pool, model_id)))


def _name(body: ShowBody) -> str:
    name = body.model or body.name
    if not name:
        raise InvalidField("model", "is missing")
    return name
