"""Limits of a model on this machine: the KV pool, the sequences, the cells that may lie idle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from locallab.engine import llama
from locallab.engine.cache import UNLIMITED
from locallab.errors import ModelLoadError
from locallab.memory_model import DEFAULT_CONTEXT, default_pool, slots, whole_cells
from locallab.settings import EngineSettings

CPU_TILE = 64
"""Minimum tokens of a batch for which ggml's CPU flash attention works in tiles (GGML_FA_TILE_Q)."""

WALK_SECONDS = 3e-9
"""Time in which one CPU thread passes a cell that a token does not see, per head and layer (measured: README, design)."""

WALK_SHARE = 0.01
"""Maximum share of a token's time for passing the cells of finished requests."""

LEAST_CACHE = 64
"""Minimum of idle cells, however slow they make a token."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Resources of the scheduler: `cells` of the KV pool, `cache_cells` of them for finished requests, tokens in a `batch`,
    running requests (`parallel`), llama sequence ids (`slots`), duration of a step; `rewind_limit` is as in PrefixCache.

    Batches of at least `tile` tokens are attended to in tiles of so many (0: never). A tile walks every cell that any of its
    tokens sees, so tokens of many sequences should not share one.
    """

    cells: int
    batch: int
    parallel: int
    slots: int
    cache_cells: int
    step_seconds: float
    rewind_limit: int = UNLIMITED
    tile: int = 0


def context_length(model: llama.Model, settings: EngineSettings) -> int:
    """Return the maximum tokens of one request."""
    context = settings.context or min(model.n_ctx_train, DEFAULT_CONTEXT) or DEFAULT_CONTEXT
    return min(context, settings.kv_tokens or context)


def kv_room(ram: int, gpus: Sequence[int | None], gpu_layers: int, layers: int) -> int:
    """Return the maximum bytes of a KV pool whose parts lie where their layers are: RAM or GPUs, which get the output first.

    `ram` and `gpus` are free bytes, None for a GPU that shares the RAM.
    """
    above = layers if gpu_layers < 0 else min(layers, max(0, gpu_layers - 1))
    if not above or not gpus or None in gpus:
        return ram
    on_gpus = sum(filter(None, gpus)) * layers // above
    return on_gpus if above == layers else min(on_gpus, ram * layers // (layers - above))


def limits(model: llama.Model, settings: EngineSettings, free: int, on_gpu: bool) -> Limits:
    """Return the limits of `model` with `free` bytes for its KV pool. Raises ModelLoadError when it does not fit."""
    context = context_length(model, settings)
    per_token = max(1, model.kv_bytes_per_token(settings.kv_type))
    room = max(context, min(default_pool(context), free // (4 * per_token)))
    cells = whole_cells(settings.kv_tokens or min(room, settings.parallel * context))
    if cells * per_token > free:
        raise ModelLoadError(
            model.path,
            f"a KV pool of {cells} tokens needs {cells * per_token / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free;"
            " set a smaller context or a smaller kv_type",
        )
    window = model.sliding_window
    return Limits(
        cells=cells,
        batch=settings.batch,
        parallel=settings.parallel,
        slots=slots(settings.parallel, model.keeps_state),
        cache_cells=cells // 4 if settings.cache_tokens is None else settings.cache_tokens,
        step_seconds=settings.step_ms / 1000,
        rewind_limit=0 if model.keeps_state else window - 1 if window else UNLIMITED,
        tile=0 if on_gpu else CPU_TILE,
    )


def idle_cells(limits: Limits, token_seconds: float, walk_seconds: float) -> int:
    """Return the number of cells of finished requests that slow a token down by at most WALK_SHARE.

    A token takes `token_seconds`; passing a cell that it does not see takes `walk_seconds`, 0 in a model without attention.
    """
    if not walk_seconds:
        return limits.cache_cells
    return min(limits.cache_cells, max(LEAST_CACHE, int(WALK_SHARE * token_seconds / walk_seconds)))
