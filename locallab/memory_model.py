"""The memory rules that the engine allocates by and `fit` predicts with."""

from __future__ import annotations

from collections.abc import Mapping

KV_BYTES: Mapping[str, float] = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes of one number in the KV cache, by the setting `kv_type`."""

DEFAULT_CONTEXT = 8192
"""Context of a model without a configured one that was trained for at least as much."""

DEFAULT_POOL = 16384
"""Least default size of the KV pool in tokens, where memory allows and the requests can fill it."""

MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ of this llama.cpp: sequence ids are below it."""

CACHED_SEQUENCES = 64
"""Sequence ids beyond those of running requests, for finished ones that stay in the KV pool."""

STEP = 512
"""Most tokens that llama.cpp computes in one go where a sequence may be computed in parts (n_ubatch)."""

EMBEDDING_BATCH = 512
"""Tokens beyond which a CPU gains nothing from larger embedding batches: each token would attend to all the others."""

OUTPUT_BYTES = 512 << 20
"""Most memory for the outputs of an embedding batch: llama.cpp keeps one as wide as the vocabulary for every token, though
none is read."""

MASK_BYTES = 6
"""Bytes of one entry in the attention mask of a text that is computed as a whole."""


def default_pool(context: int) -> int:
    """Return the tokens of the KV pool where none are configured: two contexts, at least DEFAULT_POOL."""
    return max(2 * context, DEFAULT_POOL)


def whole_cells(tokens: int) -> int:
    """Round up to a multiple of 256, as llama.cpp does with a KV pool."""
    return -(-tokens // 256) * 256


def slots(parallel: int, keeps_state: bool) -> int:
    """Return the number of sequence ids for `parallel` running requests and the finished ones that stay in the KV pool.

    Where each sequence has a recurrent state in memory of its own, no more finished ones stay than requests run.
    """
    return min(MAX_SEQUENCES, parallel + (min(parallel, CACHED_SEQUENCES) if keeps_state else CACHED_SEQUENCES))
