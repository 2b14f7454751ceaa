"""Limits of an embedding model on this machine: the longest text, the size of a batch."""

from __future__ import annotations

import dataclasses

from locallab.engine import llama
from locallab.engine.embedding.context import in_steps
from locallab.errors import ModelLoadError
from locallab.memory_model import DEFAULT_CONTEXT, EMBEDDING_BATCH, MASK_BYTES, MAX_SEQUENCES, OUTPUT_BYTES
from locallab.settings import EngineSettings

LEAST_CONTEXT = 512
"""Tokens below which a default context is not reduced."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbedLimits:
    """`context` is the longest sequence in tokens, `batch` the tokens computed together unless one sequence is longer."""

    context: int
    batch: int
    sequences: int

    @property
    def cells(self) -> int:
        """Tokens that the context must hold at once."""
        return max(self.context, self.batch)


def limits(model: llama.Model, settings: EngineSettings, free: int, on_gpu: bool) -> EmbedLimits:
    """Return the limits of `model` with `free` bytes of memory.

    A default context takes at most a quarter of that. Raises ModelLoadError when a configured one does not fit.
    """
    context = min(filter(None, (model.n_ctx_train, settings.kv_tokens, settings.context or DEFAULT_CONTEXT)))
    if settings.context is None:
        while context > LEAST_CONTEXT and _cost(model, settings, context) > free // 4:
            context //= 2
    elif not on_gpu and (cost := _cost(model, settings, context)) > free:
        needs = f"{cost / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        raise ModelLoadError(model.path, f"a context of {context} tokens needs {needs}; set a smaller context")
    batch = settings.batch if on_gpu else min(settings.batch, EMBEDDING_BATCH)
    if not in_steps(model):
        batch = min(batch, OUTPUT_BYTES // _output_bytes(model))
    return EmbedLimits(context=context, batch=batch, sequences=min(settings.parallel, MAX_SEQUENCES))


def _cost(model: llama.Model, settings: EngineSettings, tokens: int) -> int:
    """Return the bytes that a sequence of so many tokens takes."""
    if in_steps(model):
        return tokens * model.kv_bytes_per_token(*settings.kv_types)
    return tokens * (_output_bytes(model) + tokens * MASK_BYTES)


def _output_bytes(model: llama.Model) -> int:
    return 4 * model.n_vocab
