from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.layout import FEW_STEPS, HORIZON, gaps, relocation, stream_for_prompt


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0.0, 2), (FEW_STEPS, 2), (FEW_STEPS + 0.1, 7)],
    ids=["all is cached", "a short prompt", "a long prompt"],
)
def test_long_prompts_are_read_in_high_streams(steps: float, expected: int) -> None:
    assert stream_for_prompt([5, 2, 7], steps) == expected


@pytest.mark.parametrize(
    ("streams", "expected"),
    [([], 0), ([3], 0), ([0, 1, 2], 0), ([2, 0, 1], 0), ([0, 2], 1), ([0, 1, 5, 6, 9], 2)],
    ids=str,
)
def test_gaps_are_counted_between_ids(streams: list[int], expected: int) -> None:
    assert gaps(streams) == expected


STEP, MOVE = 0.01, 1e-6
LONG = (100, 1000)

RELOCATIONS: dict[str, tuple[dict[int, tuple[int, int]], list[int], tuple[int, int] | None]] = {
    "the last fills the gap": ({0: LONG, 2: LONG}, [1, 3], (2, 1)),
    "the last fills the lowest gap": ({0: LONG, 2: LONG, 5: LONG}, [1, 3, 4], (5, 1)),
    "no gap": ({0: LONG, 1: LONG}, [2, 3], None),
    "no gap, not at the lowest": ({2: LONG, 3: LONG}, [0, 1], None),
    "one alone": ({7: LONG}, [0], None),
    "nobody": ({}, [0], None),
    "nowhere to go": ({0: LONG, 2: LONG}, [], None),
    "the lowest is not beside anybody": ({2: LONG, 4: LONG}, [0, 3], (4, 3)),
    "below the others": ({1: LONG, 3: LONG}, [0], (3, 0)),
    "a prompt is read in between": ({0: LONG, 2: LONG}, [3], None),
    "an answer that ends soon": ({0: LONG, 2: (5000, 0)}, [1], None),
    "a move that takes longer than the gap costs": ({0: LONG, 2: (1_000_000, 1000)}, [1], None),
    "two gaps become one": ({0: LONG, 3: LONG, 6: LONG}, [1, 2, 4], (6, 1)),
    "what would leave as many gaps": ({0: LONG, 3: LONG, 4: LONG}, [1], None),
}


@pytest.mark.parametrize(("answering", "free", "expected"), RELOCATIONS.values(), ids=RELOCATIONS)
def test_the_last_answer_moves_into_a_gap_if_that_pays(
    answering: dict[int, tuple[int, int]], free: list[int], expected: tuple[int, int] | None
) -> None:
    assert relocation(answering, free, STEP, MOVE) == expected


def test_a_move_pays_within_the_horizon() -> None:
    """An answer without end is worth no more than one that lasts as long as anybody can foresee."""
    dear = 0.6 * STEP * HORIZON / 100
    for left in (HORIZON, 100 * HORIZON):
        assert relocation({0: LONG, 2: (100, left)}, [1], STEP, dear * 0.99) == (2, 1)
        assert relocation({0: LONG, 2: (100, left)}, [1], STEP, dear * 1.01) is None


figures = st.tuples(st.integers(0, 2000), st.integers(0, 2000))
costs = st.floats(0, 0.1)


@given(st.dictionaries(st.integers(0, 15), figures), st.sets(st.integers(0, 15)), costs, costs)
def test_no_relocation_adds_a_gap(answering: dict[int, tuple[int, int]], free: set[int], step: float, move: float) -> None:
    free -= answering.keys()
    found = relocation(answering, free, step, move)
    if found is not None:
        source, target = found
        assert source in answering and target in free
        assert gaps(answering.keys() - {source} | {target}) < gaps(answering)


@given(st.sets(st.integers(0, 15), min_size=2))
def test_the_last_answer_fills_a_gap_or_joins_others_where_it_can(streams: set[int]) -> None:
    """With every other stream free and moves for nothing. Two last ones beside each other leave as many gaps as they fill."""
    last = max(streams)
    fills = any(at not in streams and {at - 1, at + 1} <= streams for at in range(last))
    joins = last - 1 not in streams
    found = relocation(dict.fromkeys(streams, LONG), set(range(16)) - streams, STEP, 0)
    assert (found is not None) == (fills or joins)
