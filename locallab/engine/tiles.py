"""How much attention a chunk costs on a CPU, where ggml computes it in tiles. Pure."""

from __future__ import annotations

import functools
from itertools import pairwise

TILE = 64
"""Queries in a tile, and the least tokens of a sequence in a batch for which there are tiles (GGML_FA_TILE_Q)."""

TILED = (("f16", "f16"), ("f32", "f32"))
"""Types of keys and values in a KV cache for which there are tiles."""

PIECES = 4
"""Pieces for each thread into which the kernel cuts its rows."""


@functools.lru_cache(maxsize=4096)
def tiles(tokens: int, heads: int, threads: int, tile: int = TILE) -> int:
    """Return the tiles that ggml computes for a layer with so many `heads` and a batch with `tokens` of each sequence.

    This is ggml_compute_forward_flash_attn_ext_f16 in ggml/src/ggml-cpu/ops.cpp: it cuts heads x tokens rows into 4 pieces a
    thread wherever that falls, and a tile (ggml_compute_forward_flash_attn_ext_tiled) ends at its 64th row, its head or its
    piece; one of a single row costs as much as one of 64. For a batch of several sequences in streams of their own, `heads` are
    those of all together. 0 below a tile, where rows are computed one by one.
    """
    if tokens < tile:
        return 0
    rows = heads * tokens
    wanted = PIECES * threads
    pieces = _ceil(rows, _ceil(rows, wanted))
    if threads == 1 or pieces < threads:
        pieces = threads
    ends = {*range(0, rows, tokens), *range(0, rows, _ceil(rows, pieces)), rows}
    return sum(_ceil(end - start, tile) for start, end in pairwise(sorted(ends)))


def _ceil(value: int, by: int) -> int:
    return -(-value // by)
