"""OpenAI's list of models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from locallab.models.spec import ModelSpec
from locallab.pool import Loaded, Pool
from locallab.server.dialects.answer_fields import Created


def model_cards(pool: Pool) -> Iterator[ModelCard]:
    """Yield the loaded models, last used first; then those on disk that a request would load, in the registry's order."""
    loaded = pool.loaded
    yield from map(_loaded_card, loaded)
    if pool.on_demand != "refuse":
        known = {each.spec.id for each in loaded}
        yield from (_card(pool, spec) for spec in pool.registry if spec.id not in known and pool.store.has(spec))


def _loaded_card(loaded: Loaded) -> ModelCard:
    info = loaded.engine.info
    return ModelCard(
        id=loaded.spec.id,
        name=loaded.spec.id,
        object="model",
        created=loaded.created,
        owned_by="locallab",
        status="ready",
        context_length=info.context,
        max_model_len=info.context,
        meta=CardMeta(info.context, info.n_ctx_train, info.n_vocab, info.n_params, info.size_bytes),
    )


def _card(pool: Pool, spec: ModelSpec) -> ModelCard:
    """Describe a model that is not loaded by its registry entry and its file."""
    path = pool.store.path(spec)
    card = ModelCard(
        id=spec.id,
        name=spec.id,
        object="model",
        created=int(path.stat().st_mtime) if path else 0,
        owned_by="locallab",
        status=pool.status(spec.id),
    )
    if spec.context is not None:
        card.context_length = card.max_model_len = spec.context
    return card


class CardMeta(msgspec.Struct):
    """Figures of a model, under llama.cpp's names."""

    n_ctx: int
    n_ctx_train: int
    n_vocab: int
    n_params: int
    size: int


class ModelCard(msgspec.Struct, kw_only=True):
    """A model that requests may name; its context, if known, is under every name that clients look for."""

    id: str
    name: str
    object: Literal["model"]
    created: Created
    owned_by: str
    status: Annotated[str, Meta(description="ready, unloaded, loading or error; a request loads a model that is not ready")]
    context_length: int | msgspec.UnsetType = msgspec.UNSET
    max_model_len: int | msgspec.UnsetType = msgspec.UNSET
    meta: CardMeta | msgspec.UnsetType = msgspec.UNSET


class ModelList(msgspec.Struct):
    """The models that requests may name, the loaded ones first."""

    object: Literal["list"]
    data: list[ModelCard]
    models: Annotated[list[ModelCard], Meta(description="the same, where some clients look for them")]
