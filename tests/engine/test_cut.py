from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.cut import LEAST, cut
from tests.support.simulation import Machine, streams

STEP = 512
ALONE = 1000.0
"""Seconds of patience without readers."""


def measured(heads: int = 9, threads: int = 2, tile: int = 64) -> Callable[[int, int], float]:
    """Return the costs of a chunk of SmolLM2."""
    limits, (constant, token, cell) = streams(1, heads=heads, threads=threads, tile=tile), Machine().prompt
    return lambda count, start: constant + token * count + cell * limits.work(count, start)


CASES = {  # pending, start, spent, patience, the length that is right
    "nobody reads: as much as there is": ((380, 0, 0.0, ALONE), 380),
    "nobody reads: as much as llama.cpp computes at once": ((6000, 0, 0.0, ALONE), 512),
    "no tail of a part of a tile": ((127, 3000, 0.0, 0.2), 127),
    "a reader: a tile": ((3000, 100, 0.05, 0.2), 64),
    "a reader, and a long context: two tiles, of which the threads waste less": ((3000, 3000, 0.05, 0.2), 128),
    "two equal parts rather than eight tiles and a rest": ((600, 0, 0.05, 1.0), 300),
    "many readers, who take long themselves: in one step": ((380, 0, 0.5, 0.8), 380),
    "a short prompt as a whole": ((60, 0, 0.05, 0.2), 60),
    "as far as there is time": ((60, 0, 0.01, 0.05), 20),
}


@pytest.mark.parametrize(("numbers", "expected"), CASES.values(), ids=CASES)
def test_cut(numbers: tuple[int, int, float, float], expected: int) -> None:
    pending, start, spent, patience = numbers
    assert cut(pending, start, STEP, 64, spent, patience, measured()) == expected


@pytest.mark.parametrize(
    ("heads", "threads", "expected"),
    [
        pytest.param(32, 8, 64, id="pieces end where tiles do"),
        pytest.param(32, 16, 128, id="with 64 tokens each tile would be computed twice"),
    ],
)
def test_a_chunk_fits_the_threads(heads: int, threads: int, expected: int) -> None:
    assert cut(3000, 1000, STEP, 64, 0.05, 0.2, measured(heads, threads)) == expected


@pytest.mark.parametrize("seconds", [0.05, 0.2, 1.0, 5.0])
def test_where_tiles_do_not_matter_the_time_decides(seconds: float) -> None:
    """At a millisecond a token a step is at most half longer than readers tolerate, and no shorter than it may be."""
    count = cut(3000, 0, STEP, 0, 0.0, seconds, lambda count, start: 0.001 * count)
    assert min(seconds / 2, STEP / 1000) <= count / 1000 <= 1.5 * seconds


@given(
    pending=st.integers(1, 9000),
    start=st.integers(0, 9000),
    most=st.integers(1, STEP),
    tile=st.sampled_from([0, 8, 64]),
    spent=st.floats(0, 10),
    patience=st.floats(0.001, 100),
    heads=st.integers(1, 64),
)
def test_a_cut_is_within_its_bounds(
    pending: int, start: int, most: int, tile: int, spent: float, patience: float, heads: int
) -> None:
    count = cut(pending, start, most, tile, spent, patience, measured(heads, tile=tile))
    assert min(LEAST, pending, most) <= count <= min(pending, most)


@given(st.integers(1, 3000), st.integers(0, 3000), st.floats(0, 1), st.floats(0.01, 10))
def test_more_patience_never_makes_for_a_shorter_step(pending: int, start: int, spent: float, patience: float) -> None:
    cost = measured()
    hasty = cut(pending, start, STEP, 64, spent, patience, cost)
    patient = cut(pending, start, STEP, 64, spent, 10 * patience, cost)
    assert cost(patient, start) >= cost(hasty, start)
