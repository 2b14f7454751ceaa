from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.step_plan import cut

CASES = {
    "all of it fits": ((40, 100, 100, 0), 40),
    "as much as the budget": ((400, 100, 200, 0), 100),
    "no tiles: no rest is too short": ((101, 100, 200, 0), 100),
    "whole tiles of a long prompt": ((400, 128, 512, 64), 128),
    "a rest shorter than a tile is taken along": ((160, 128, 512, 64), 160),
    "as far as there is room": ((160, 128, 140, 64), 140),
    "a rest of a whole tile waits": ((192, 128, 512, 64), 128),
    "a short prompt is no rest": ((20, 128, 512, 64), 20),
    "a short prompt beyond the budget": ((20, 5, 512, 64), 20),
    "less than a tile of a long prompt is not begun": ((400, 30, 512, 64), 0),
    "nothing is left to give": ((400, 0, 512, 64), 0),
}


@pytest.mark.parametrize(("arguments", "expected"), CASES.values(), ids=CASES)
def test_cut(arguments: tuple[int, int, int, int], expected: int) -> None:
    assert cut(*arguments) == expected


sizes = st.integers(0, 3000)


@given(st.integers(1, 3000), sizes, sizes, st.sampled_from([0, 1, 16, 64]))
def test_a_cut_is_within_its_bounds(pending: int, budget: int, more: int, tile: int) -> None:
    room = budget + more
    count = cut(pending, budget, room, tile)
    assert 0 <= count <= min(pending, room)
    assert count <= max(budget, budget + tile), "more than a tile beyond the budget"
    if tile and count:
        assert count >= min(tile, pending, room), "a piece shorter than a tile"
    if count < pending:
        assert count == room or pending - count >= tile, "a rest shorter than a tile"
