"""The memory rules that the engine allocates by and `fit` predicts with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from locallab.settings import KvLayout, Layout

KV_BYTES: Mapping[str, float] = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes of one number in the KV cache, by the setting `kv_type`."""

BLOCKS: Mapping[str, int] = {"q8_0": 32, "q4_0": 32}
"""Numbers in a block of the types of KV cache that have blocks."""

DEFAULT_CONTEXT = 8192
"""Context that a model trained for at least as much should have where none is configured; memory decides about more."""

DEFAULT_POOL = 16384
"""Least default size of the KV cache in tokens, where memory allows and the requests can fill it."""

DEFAULT_CONTEXTS = 8
"""Whole contexts that the KV cache holds by default, where memory allows: streams for as many requests at once."""

GPU_SHARE = 0.8
"""Share of the GPU memory left after the weights that the KV cache takes by default."""

RAM_SHARE = 0.25
"""Share of the free RAM that an engine's KV cache takes by default."""

ENOUGH_CPU = 8
"""Streams beyond which a CPU's step grows linearly, so that requests may as well wait (11.6, 43, 137 ms for 1, 8, 32)."""

ENOUGH_GPU = 16
"""Streams that a GPU should have: its step hardly grows with them, so that a request which waits wastes it."""

SLIDING: Mapping[str, int] = {
    **dict.fromkeys(("gemma2", "gpt-oss"), 2),
    **dict.fromkeys(("afmoe", "cohere2", "cohere2moe", "exaone4", "exaone-moe", "laguna", "llama4", "mellum"), 4),
    **dict.fromkeys(("muse-glimmer", "olmo2", "smallthinker"), 4),
    "gemma3n": 5,
    "gemma3": 6,
    "plamo3": 8,
}
"""Sliding-window architectures: one in so many layers has full attention, the last of them."""

DENSE_FIRST = frozenset({"cohere2moe", "laguna", "smallthinker"})
"""Those in which the first has it."""

EXAONE4_LAYERS = 64
"""Layers of the only Exaone 4 with a window."""

MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ of this llama.cpp: sequence ids are below it."""

CACHED_SEQUENCES = 64
"""Sequence ids beyond those of running requests, for finished ones that stay in the KV pool."""

LEAST_OUTPUTS = 32
"""Minimum of outputs in a step: a prompt whose log probabilities are wanted needs one for each token."""

STEP = 512
"""Tokens that llama.cpp computes in one go where a sequence may be computed in parts (n_ubatch); `ubatches` may have more."""

GPU_STEPS = (2048, 1024, STEP)
"""Tokens in one go to try on a GPU, which is not busy with fewer; from 1,024 on its attention skips masked cells in a pool."""

UBATCH_SHARE = 0.1
"""Share of the GPU memory left after the weights that the buffers of a step may take."""

DRAFT_BATCH = 256
"""Least size of the draft model's largest step: it reads beside the steps of another model, and makes no prompt wait."""

DRAFT_CATCH_UP = 16
"""Tokens that the draft model may lack of a sequence when it begins a draft: it computes them with the first one."""

EMBEDDING_BATCH = 512
"""Tokens beyond which a CPU gains nothing from larger embedding batches: each token would attend to all the others."""

OUTPUT_BYTES = 512 << 20
"""Most memory for the outputs of an embedding batch: llama.cpp keeps one as wide as the vocabulary for every token, though
none is read."""

MASK_BYTES = 6
"""Bytes of one entry in the attention mask of a text that is computed as a whole."""


@dataclasses.dataclass(frozen=True, slots=True)
class KvCache:
    """The KV cache as llama.cpp allocates it: `cells` in all, `parallel` requests at once, `sequences` ids."""

    layout: Layout
    cells: int
    parallel: int
    sequences: int

    @property
    def streams(self) -> int:
        """Number of equal parts that share nothing."""
        return self.sequences if self.layout == "streams" else 1

    @property
    def outputs(self) -> int:
        """Tokens of a step whose logits are read, at most."""
        return max(LEAST_OUTPUTS, self.sequences)

    def window_cells(self, window: int, ubatch: int) -> int:
        """Return the cells of a layer with a sliding window (llama_kv_cache_iswa): in each stream those that the windows of its
        sequences need, and the `ubatch` tokens computed in one go."""
        owners = self.sequences // self.streams
        return self.streams * whole_cells(min(self.cells // self.streams, window * owners + ubatch))


def ubatches(batch: int, gpus: int, partial: bool) -> tuple[int, ...]:
    """Return the tokens to compute in one go (n_ubatch) of a step with up to `batch`, largest first, of which the first whose
    buffers fit is the best: always at least one.

    Without a GPU STEP, beyond which a token costs no less. On a GPU more. Where only a part of the layers is there, each go
    carries the weights of all others across the bus (op_offload), so a whole step should be one. Several GPUs compute the
    parts of a step one behind the other, so there should be parts.
    """
    if not gpus or (gpus > 1 and not partial):
        return (min(STEP, batch),)
    sizes = {min(size, batch) for size in GPU_STEPS} | ({batch} if partial else set())
    return tuple(sorted(sizes, reverse=True))


def kv_cache(wanted: KvLayout, tokens: int, context: int, parallel: int, keeps_state: bool, on_gpu: bool) -> KvCache:
    """Return the KV cache of `tokens` for requests of up to `context` tokens, `parallel` at once: in streams no more than those
    that hold a whole context."""
    cells = whole_cells(tokens)
    layout = kv_layout(wanted, cells, context, parallel, on_gpu)
    if layout == "streams":
        parallel = min(parallel, MAX_SEQUENCES, max(1, cells // whole_cells(context)))
        cells = parallel * whole_cells(cells // parallel)
    return KvCache(layout, cells, parallel, sequence_ids(parallel, layout, keeps_state))


def draft_cache(cells: int, context: int, parallel: int) -> tuple[KvCache, int]:
    """Return the KV cache of the draft model for a model with a cache of so many cells, and the tokens of its largest step: a
    stream for each of as many requests as have room for a whole context there."""
    cache = kv_cache("streams", cells, context, parallel, keeps_state=False, on_gpu=False)
    return cache, max(DRAFT_BATCH, DRAFT_CATCH_UP * cache.streams)


def kv_layout(wanted: KvLayout, cells: int, context: int, parallel: int, on_gpu: bool) -> Layout:
    """Return the layout of `cells` KV cells for requests of up to `context` tokens, `parallel` at once.

    Streams where as many whole contexts fit as there are requests to run, or as the machine needs to be busy.
    """
    if wanted != "auto":
        return wanted
    enough = min(parallel, ENOUGH_GPU if on_gpu else ENOUGH_CPU)
    return "streams" if cells // whole_cells(context) >= enough else "unified"


def wanted_layout(wanted: KvLayout, cache_ram_mib: int, parallel: int) -> KvLayout:
    """Return the layout to ask `kv_layout` for: requests that run at once share nothing in streams without host RAM."""
    return "unified" if wanted == "auto" and not cache_ram_mib and parallel > 1 else wanted


def windowed(architecture: str, layers: int, period: int | None = None) -> tuple[bool, ...]:
    """Return for each layer of a model with a sliding window whether its attention has it, all False if that is not known.
    `period` is the file's own, if it tells one."""
    if architecture == "exaone4" and layers != EXAONE4_LAYERS:
        return (False,) * layers
    period = SLIDING.get(architecture, 0) and (period or SLIDING[architecture])
    dense = 0 if architecture in DENSE_FIRST else period - 1
    return tuple(bool(period) and index % period != dense for index in range(layers))


def default_contexts(context: int, parallel: int) -> int:
    """Return the whole contexts in the KV cache where none are configured and memory allows."""
    return min(parallel, max(DEFAULT_CONTEXTS, DEFAULT_POOL // context))


def whole_cells(tokens: int) -> int:
    """Round up to a multiple of 256, as llama.cpp does with a KV pool."""
    return -(-tokens // 256) * 256


def sequence_ids(parallel: int, layout: str, keeps_state: bool) -> int:
    """Return the number of sequence ids for `parallel` running requests.

    In a unified pool further ones are for finished requests that stay, no more than run where each has a recurrent state in
    memory of its own, and one for a prefix that is put back behind a shared one.
    """
    if layout == "streams":
        return parallel
    return min(MAX_SEQUENCES, parallel + (min(parallel, CACHED_SEQUENCES) if keeps_state else CACHED_SEQUENCES))
