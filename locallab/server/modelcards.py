"""OpenAI's list of models: what a client may name."""

from __future__ import annotations

from collections.abc import Iterator

from locallab.models.spec import ModelSpec
from locallab.pool import Loaded, Pool
from locallab.server.answers import CardMeta, ModelCard


def model_cards(pool: Pool) -> Iterator[ModelCard]:
    """The loaded models, last used first; then those on disk that a request would load, in the registry's order."""
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
    """The registry's word on the context, and the age of the file, for want of better."""
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
