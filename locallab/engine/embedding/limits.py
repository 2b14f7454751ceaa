"""What a model that makes vectors may use of this machine: the longest text, the size of a batch."""

from __future__ import annotations

import dataclasses

from locallab.engine import llama
from locallab.engine.embedding.context import in_steps
from locallab.engine.limits import DEFAULT_CONTEXT
from locallab.errors import ModelLoadError
from locallab.settings import EngineSettings

CPU_BATCH = 512
"""Tokens from which on a CPU gains nothing by computing more at once: each would pass all the others in its attention."""

OUTPUT_BYTES = 512 << 20
"""Most memory for a batch's outputs: llama.cpp keeps one as wide as the vocabulary for every token, though none is read."""

MASK_BYTES = 6
"""Of one entry in the table that says which token of a batch sees which other one."""

LEAST_CONTEXT = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbedLimits:
    """`context` is the longest sequence, `batch` the tokens that are computed together unless one sequence is longer."""

    context: int
    batch: int
    sequences: int

    @property
    def cells(self) -> int:
        """Tokens that there must be room for at once."""
        return max(self.context, self.batch)


def limits(model: llama.Model, settings: EngineSettings, free: int, on_gpu: bool) -> EmbedLimits:
    """The limits of `model` with `free` bytes of memory. A context that nobody asked for is no longer than a quarter of that
    allows. Raises ModelLoadError when one that was asked for cannot fit."""
    context = min(filter(None, (model.n_ctx_train, settings.kv_tokens, settings.context or DEFAULT_CONTEXT)))
    if settings.context is None:
        while context > LEAST_CONTEXT and _cost(model, settings, context) > free // 4:
            context //= 2
    elif not on_gpu and (cost := _cost(model, settings, context)) > free:
        needs = f"{cost / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        raise ModelLoadError(model.path, f"a context of {context} tokens needs {needs}; set a smaller context")
    batch = settings.batch if on_gpu else min(settings.batch, CPU_BATCH)
    if not in_steps(model):
        batch = min(batch, OUTPUT_BYTES // _output_bytes(model))
    return EmbedLimits(context=context, batch=batch, sequences=min(settings.parallel, llama.MAX_SEQUENCES))


def _cost(model: llama.Model, settings: EngineSettings, tokens: int) -> int:
    """Bytes that a sequence of so many tokens takes."""
    if in_steps(model):
        return tokens * model.kv_bytes_per_token(settings.kv_type)
    return tokens * (_output_bytes(model) + tokens * MASK_BYTES)


def _output_bytes(model: llama.Model) -> int:
    return 4 * model.n_vocab
