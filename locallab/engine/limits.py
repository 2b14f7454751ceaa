"""What a model may use of this machine: the KV pool, the sequences, how much of it may lie idle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from locallab.engine import llama
from locallab.engine.cache import UNLIMITED
from locallab.errors import ModelLoadError
from locallab.settings import EngineSettings

DEFAULT_CONTEXT = 8192
"""Context of a model for which nobody says one, when it was trained for at least as much."""

DEFAULT_POOL = 16384
"""Tokens the KV pool holds by default, or two contexts if that is more, where a quarter of the free memory allows."""

CACHED_SEQUENCES = 64
"""llama sequence ids beyond those of running requests: so many finished ones can stay in the pool. Where each takes memory
for a state of its own, there are no more of them than of running ones."""

CPU_TILE = 64
"""Tokens from which on ggml's CPU flash attention works in tiles (GGML_FA_TILE_Q)."""

WALK_SECONDS = 3e-9
"""One CPU thread passes a cell that a token does not see, in one head of one layer (measured: README, design)."""

WALK_SHARE = 0.01
"""Part of a token's time that may be spent on passing the cells of finished requests."""

LEAST_CACHE = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the scheduler may use. Tokens and cells unless said otherwise.

    `tile` is the number of tokens from which on attention works in tiles of so many (0: never). A tile walks every cell that
    any of its tokens sees, so answers of many sequences do not belong into one.
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
    """Tokens one request may use."""
    context = settings.context or min(model.n_ctx_train, DEFAULT_CONTEXT) or DEFAULT_CONTEXT
    return min(context, settings.kv_tokens or context)


def kv_room(ram: int, gpus: Sequence[int | None], gpu_layers: int, layers: int) -> int:
    """Bytes that a KV pool may take at most: each layer's part lies where the layer is, the output being the first on a GPU.

    `ram` and `gpus` are free bytes, None for a GPU that shares the RAM.
    """
    above = layers if gpu_layers < 0 else min(layers, max(0, gpu_layers - 1))
    if not above or not gpus or None in gpus:
        return ram
    on_gpus = sum(filter(None, gpus)) * layers // above
    return on_gpus if above == layers else min(on_gpus, ram * layers // (layers - above))


def limits(model: llama.Model, settings: EngineSettings, free: int, on_gpu: bool) -> Limits:
    """The limits of `model` with `free` bytes for its KV pool. Raises ModelLoadError when that cannot fit."""
    context = context_length(model, settings)
    per_token = max(1, model.kv_bytes_per_token(settings.kv_type))
    room = max(context, min(max(2 * context, DEFAULT_POOL), free // (4 * per_token)))
    cells = -(-(settings.kv_tokens or min(room, settings.parallel * context)) // 256) * 256
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


def slots(parallel: int, keeps_state: bool) -> int:
    """llama sequence ids there are: for running requests and for finished ones that stay in the pool."""
    cached = min(parallel, CACHED_SEQUENCES) if keeps_state else CACHED_SEQUENCES
    return min(llama.MAX_SEQUENCES, parallel + cached)


def idle_cells(limits: Limits, token_seconds: float, walk_seconds: float) -> int:
    """Cells of finished requests that slow a token down by no more than WALK_SHARE.

    A token takes `token_seconds`; passing one cell it does not see takes `walk_seconds`, nothing in a model without attention.
    """
    if not walk_seconds:
        return limits.cache_cells
    return min(limits.cache_cells, max(LEAST_CACHE, int(WALK_SHARE * token_seconds / walk_seconds)))
