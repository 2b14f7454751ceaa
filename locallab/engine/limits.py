"""Limits of a model on this machine: the KV pool, the sequences, the cells that may lie idle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from locallab import hardware
from locallab.engine import llama
from locallab.engine.prefix_tree import NEGLIGIBLE
from locallab.engine.tiles import TILE, TILED, tiles
from locallab.errors import ModelLoadError
from locallab.memory_model import (
    DEFAULT_CONTEXT,
    GPU_SHARE,
    RAM_SHARE,
    STEP,
    KvCache,
    default_contexts,
    kv_cache,
    wanted_layout,
    whole_cells,
    windowed,
)
from locallab.settings import EngineSettings, Layout

ALONE_COST = 4
"""Times that a row of attention costs which a CPU computes alone, against one in a tile."""

WALK_SECONDS = 3e-9
"""Time in which one CPU thread passes a cell that a token does not see, per head and layer (measured: README, design)."""

WALK_SHARE = 0.01
"""Maximum share of a token's time for passing the cells of finished requests."""

GPU_WALK_SHARE = 0.1
"""The same on a GPU, where putting them back crosses the bus and stops the step."""

LEAST_CACHE = 64
"""Minimum of idle cells, however slow they make a token."""


SAVE_SHARE = 0.05
"""Maximum share of a prompt's time for saving states that cannot be cut."""

SNAPSHOTS_SHARE = 0.25
"""Maximum share of the host RAM for prefixes that the snapshots of one prompt may take."""

LEAST_SPACING = 256
"""Minimum of tokens between two snapshots inside a prompt."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Resources of the scheduler: `cells` of the KV cache, `cache_cells` of them for finished requests, tokens in a `batch`,
    running requests (`parallel`), llama sequence ids for requests (`slots`; where they share cells the next one is spare),
    duration of a step.

    A step may have so many `outputs`, tokens whose logits are read.

    `cuts`: the state of a prefix can be cut out of a longer one's. `cache_bytes` of host RAM are for prefixes; one takes
    `row_bytes` for each token and `fixed_bytes`. A state that cannot be cut is saved every `snapshot_every` tokens, 0: never.

    `even`: a batch has as many tokens of each of its sequences, so that llama.cpp computes it in one go.

    `drafts` of answers may be verified: what a sequence has computed last can be removed.

    Up to `media_bytes` of host RAM are for embeddings of pictures and sounds.

    llama.cpp computes up to `ubatch` tokens in one go. `queues`: it goes on computing while more is handed to it, so nobody
    needs to wait for a batch without outputs.

    Batches of at least `tile` tokens are attended to in tiles of so many (0: never), which `heads` and `threads` cut. A tile
    walks every cell that any of its tokens sees, so tokens of many sequences should not share one.
    """

    cells: int
    batch: int
    parallel: int
    slots: int
    cache_cells: int
    step_seconds: float
    tile: int = 0
    heads: int = 1
    threads: int = 1
    outputs: int = 64
    layout: Layout = "unified"
    even: bool = False
    drafts: bool = False
    cuts: bool = True
    cache_bytes: int = 0
    row_bytes: int = 0
    fixed_bytes: int = 0
    snapshot_every: int = 0
    ubatch: int = STEP
    queues: bool = False
    media_bytes: int = 0

    @property
    def pooled(self) -> bool:
        """True if sequences compete for cells."""
        return self.layout == "unified"

    @property
    def shares(self) -> bool:
        """True if sequences can have cells in common."""
        return self.pooled and self.cuts

    def boundaries(self, n_prompt: int, likely: Iterable[int]) -> list[int]:
        """Return the lengths at which to save a prompt whose state cannot be cut: where it is `likely` to be left, every
        `snapshot_every` tokens, and before the last token, so that the same prompt needs no more."""
        if self.cuts or not self.snapshot_every:
            return []
        inner = range(self.snapshot_every, n_prompt, self.snapshot_every)
        wanted = {at for at in (*likely, *inner) if 0 < at < n_prompt}
        return sorted(wanted if max(wanted, default=0) > n_prompt - 1 - NEGLIGIBLE else {*wanted, n_prompt - 1})

    def work(self, count: int, start: int) -> float:
        """Return the work of attention for a chunk of `count` tokens behind `start` others: for each token that tiles make room
        for the cells that it sees, and as often as that costs for one that is computed alone."""
        rows: float = count
        if self.tile and count >= self.tile:
            rows = self.tile * tiles(count, self.heads, self.threads, self.tile) / self.heads
        elif self.tile:
            rows = ALONE_COST * count
        return rows * (start + count / 2)

    def holds(self, length: int) -> bool:
        """Tell whether host RAM can hold a prefix of `length` tokens."""
        return 0 < self.row_bytes * length + self.fixed_bytes <= self.cache_bytes


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
    cache = _kv_cache(model, settings, free, on_gpu)
    needed = kv_bytes(model, settings, cache)
    shared = model.meta("{arch}.attention.shared_kv_layers")
    at_most = model.keeps_state or shared or windowed_layers(model) is None  # it may be much less, and `fit` knows
    if needed > free and not at_most:
        raise ModelLoadError(
            model.path,
            f"a KV pool of {cache.cells} tokens needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free;"
            " set a smaller context or a smaller kv_type",
        )
    # With a window, a batch that llama.cpp computes in parts loses cells which its first part still sees: preparing the last
    # part purges what is out of the window by then (llama_kv_cache::prepare, apply_ubatch).
    cuts = not (model.keeps_state or model.sliding_window)
    ubatch = ubatch_of(settings)
    return Limits(
        cells=cache.cells,
        batch=min(settings.batch, ubatch) if model.sliding_window else settings.batch,
        parallel=cache.parallel,
        slots=cache.sequences - 1 if cuts and cache.layout == "unified" else cache.sequences,
        cache_cells=cache.cells if settings.cache_tokens is None else settings.cache_tokens,
        step_seconds=settings.step_ms / 1000,
        outputs=cache.outputs,
        tile=TILE if not on_gpu and settings.kv_types in TILED else 0,
        heads=max(1, model.n_head),
        threads=settings.threads or hardware.threads(),
        layout=cache.layout,
        even=cache.layout == "streams" or (model.sliding_window > 0 and model.keeps_state),
        drafts=settings.drafts and not model.keeps_state,
        cuts=cuts,
        cache_bytes=settings.cache_ram_mib << 20,
        ubatch=ubatch,
        queues=on_gpu,
        media_bytes=settings.media_cache_mib << 20,
    )


def ubatch_of(settings: EngineSettings) -> int:
    """Return the tokens that llama.cpp computes in one go."""
    return min(settings.ubatch or STEP, settings.batch)


def _kv_cache(model: llama.Model, settings: EngineSettings, free: int, on_gpu: bool) -> KvCache:
    """Return the KV cache as configured, or with as many whole contexts as its share of the `free` bytes holds, but one."""
    context = context_length(model, settings)

    def of(tokens: int) -> KvCache:
        wanted = wanted_layout(settings.kv_layout, settings.cache_ram_mib, settings.parallel)
        return kv_cache(wanted, tokens, context, settings.parallel, model.keeps_state, on_gpu)

    if settings.kv_tokens:
        return of(settings.kv_tokens)
    all_there = on_gpu and not 0 <= settings.gpu_layers <= model.n_layer
    most = settings.parallel if all_there else default_contexts(context, settings.parallel)
    room = free * (GPU_SHARE if all_there else RAM_SHARE)
    caches = (of(count * whole_cells(context)) for count in range(most, 1, -1))
    return next((cache for cache in caches if kv_bytes(model, settings, cache) <= room), of(context))


def kv_bytes(model: llama.Model, settings: EngineSettings, cache: KvCache) -> int:
    """Return the most bytes of a KV cache: every layer counts as an attention layer, with full attention if it is not known
    which have a window."""
    layers = windowed_layers(model) or 0
    in_window = layers * cache.window_cells(model.sliding_window, ubatch_of(settings))
    cells = (model.n_layer - layers) * cache.cells + in_window
    return model.kv_bytes_per_token(*settings.kv_types) * cells // model.n_layer


def windowed_layers(model: llama.Model) -> int | None:
    """Return how many layers have a sliding window; None if it is not known, since llama.cpp does not tell it."""
    if not model.sliding_window:
        return 0
    period = model.meta("{arch}.attention.sliding_window_pattern")
    architecture = model.meta("general.architecture") or ""
    return sum(windowed(architecture, model.n_layer, int(period) if period else None)) or None


def idle_cells(limits: Limits, token_seconds: float, walk_seconds: float, share: float = WALK_SHARE) -> int:
    """Return the number of cells of finished requests that slow a token down by at most a `share` of it.

    A token takes `token_seconds`; passing a cell that it does not see takes `walk_seconds`, 0 in a model without attention.
    """
    if not walk_seconds:
        return limits.cache_cells
    return min(limits.cache_cells, max(LEAST_CACHE, int(share * token_seconds / walk_seconds)))


def snapshot_spacing(fixed_bytes: int, cache_bytes: int, context: int, save_seconds: float, token_seconds: float) -> int:
    """Return the tokens between two snapshots of a long prompt whose state cannot be cut; 0 if there is no room for any.

    A snapshot takes `fixed_bytes` and `save_seconds`, a token of the prompt `token_seconds`.
    """
    if fixed_bytes > cache_bytes:
        return 0
    by_time = save_seconds / (SAVE_SHARE * token_seconds) if token_seconds else 0
    by_room = context * fixed_bytes / (SNAPSHOTS_SHARE * cache_bytes) if cache_bytes else 0
    return max(LEAST_SPACING, int(by_time), int(by_room))
