from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.tiles import TILE, tiles


def kernel(tokens: int, heads: int, threads: int) -> int:
    """Count the tiles as the kernel's own loops go through them, one after the other."""
    rows = heads * tokens
    size = -(-rows // (4 * threads))
    count = -(-rows // size)
    if threads == 1 or count < threads:
        count = threads
    step = -(-rows // count)
    found = 0
    for piece in range(count):
        row, end = step * piece, min(step * piece + step, rows)
        while row < end:
            row += min(TILE, end - row, tokens - row % tokens)
            found += 1
    return found


@given(st.integers(64, 1100), st.integers(1, 160), st.integers(1, 128))
def test_tiles_are_those_of_the_kernel(tokens: int, heads: int, threads: int) -> None:
    assert tiles(tokens, heads, threads) == kernel(tokens, heads, threads)


CASES = {  # tokens, heads, threads: tiles
    "a 64-token chunk of SmolLM2 on two threads: 16 for 9": ((64, 9, 2), 16),
    "128: 24 for 18": ((128, 9, 2), 24),
    "256: 40 for 36": ((256, 9, 2), 40),
    "512: no more than needed": ((512, 9, 2), 72),
    "heads that divide among the pieces": ((64, 32, 2), 32),
    "pieces shorter than a tile: each tile twice": ((64, 32, 16), 64),
    "one thread cuts only at heads": ((100, 9, 1), 18),
    "a token more than a tile": ((65, 8, 2), 16),
    "eight sequences of 64 tokens, as one of 512": ((64, 8 * 9, 2), 72),
    "below a tile": ((63, 9, 2), 0),
}


@pytest.mark.parametrize(("arguments", "expected"), CASES.values(), ids=CASES)
def test_tiles(arguments: tuple[int, int, int], expected: int) -> None:
    assert tiles(*arguments) == expected
