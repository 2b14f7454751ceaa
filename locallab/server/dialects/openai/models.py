"""OpenAI's list of models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from locallab.models.spec import ModelSpec
from locallab.pool import Pool
from locallab.pool.loaded import modalities_of
from locallab.server.dialects.answer_fields import Created, Modalities


def model_cards(pool: Pool) -> Iterator[ModelCard]:
    """Yield the loaded models, last used first; then those on disk that a request would load, in the registry's order. Each is
    followed by what it is with one of its adapters."""
    for card, spec in _model_cards(pool):
        yield card
        for each in spec.adapted:
            yield msgspec.structs.replace(card, id=each.id, name=each.id, parent=spec.id)


def _model_cards(pool: Pool) -> Iterator[tuple[ModelCard, ModelSpec]]:
    loaded = pool.loaded
    for each in loaded:
        info = each.engine.info
        card = ModelCard(
            id=each.spec.id,
            name=each.spec.id,
            object="model",
            created=each.created,
            owned_by="locallab",
            status="ready",
            context_length=info.context,
            max_model_len=info.context,
            modalities=modalities_of(each.spec, each, pool.store),
            meta=CardMeta(info.context, info.n_ctx_train, info.n_vocab, info.n_params, info.size_bytes),
        )
        yield card, each.spec
    known = {each.spec.id for each in loaded}
    for spec in pool.registry if pool.on_demand != "refuse" else ():
        if spec.id not in known and pool.store.has(spec):
            path = pool.store.path(spec)
            context = UNSET if spec.context is None else spec.context
            card = ModelCard(
                id=spec.id,
                name=spec.id,
                object="model",
                created=int(path.stat().st_mtime) if path else 0,
                owned_by="locallab",
                status=pool.status(spec.id),
                context_length=context,
                max_model_len=context,
                modalities=modalities_of(spec, None, pool.store),
            )
            yield card, spec


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
    context_length: int | UnsetType = UNSET
    max_model_len: int | UnsetType = UNSET
    modalities: Modalities
    meta: CardMeta | UnsetType = UNSET
    parent: Annotated[str | UnsetType, Meta(description="of a model with an adapter: the model alone")] = UNSET


class ModelList(msgspec.Struct):
    """The models that requests may name, the loaded ones first."""

    object: Literal["list"]
    data: list[ModelCard]
    models: Annotated[list[ModelCard], Meta(description="the same, where some clients look for them")]
