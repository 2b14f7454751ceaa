from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.media.runs import Prompt, Run, ids, joined, position, run_at, uncut, until


def run(count: int, key: bytes = b"k", positions: int | None = None) -> Run:
    places = None if positions is None else np.zeros((4, count), np.int32)
    return Run(0, count, count if positions is None else positions, key, "images[0]", places=places)


def picture(count: int, key: bytes = b"k", positions: int | None = None) -> Prompt:
    return Prompt(ids(key, count), [run(count, key, positions)])


def test_ids_are_no_tokens_and_follow_from_the_content() -> None:
    assert all(-(2**31) <= id < 0 for id in ids(b"a", 1000))
    assert ids(b"a", 64) == ids(b"a", 64)
    assert not set(ids(b"a", 64)) & set(ids(b"b", 64))
    assert ids(b"a", 8) == ids(b"a", 64)[:8]


def test_parts_are_joined_with_their_runs_in_place() -> None:
    prompt = joined([[1, 2], picture(3, b"a"), [4], joined([picture(2, b"b"), [5]])])
    assert prompt == [1, 2, *ids(b"a", 3), 4, *ids(b"b", 2), 5]
    assert [(each.start, each.end, each.key) for each in prompt.runs] == [(2, 5, b"a"), (6, 8, b"b")]


PROMPT = joined([[1, 2], picture(3, b"a"), [4], picture(2, b"b")])


@pytest.mark.parametrize(
    ("index", "in_run", "end", "whole"),
    [
        (0, None, 2, 0),
        (1, None, 2, 1),
        (2, 0, 5, 2),
        (4, 0, 5, 2),
        (5, None, 6, 5),
        (6, 1, 8, 6),
        (7, 1, 8, 6),
        (8, None, None, 8),
    ],
)
def test_where_runs_are(index: int, in_run: int | None, end: int | None, whole: int) -> None:
    runs = PROMPT.runs
    assert run_at(runs, index) == (None if in_run is None else runs[in_run])
    assert until(runs, index) == end
    assert uncut(runs, index) == whole


def test_positions_of_several_dimensions() -> None:
    """A picture of six embeddings in a grid of two by three takes three positions, and all of it has the first one."""
    prompt = joined([[1, 2], picture(6, b"a", positions=3), [3], picture(2, b"b"), [4]])
    found = [position(prompt.runs, i) for i in range(len(prompt) + 1)]
    assert found == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8, 9]


parts = st.lists(
    st.one_of(
        st.lists(st.integers(0, 99), min_size=1, max_size=5),
        st.tuples(st.integers(1, 9), st.binary(min_size=1, max_size=2)).map(lambda each: picture(*each)),
    ),
    max_size=6,
)


@given(parts)
def test_runs_and_texts_take_turns(parts: list[list[int]]) -> None:
    prompt = joined(parts)
    at, seen = 0, []
    while at < len(prompt):
        end = until(prompt.runs, at)
        end = len(prompt) if end is None else end
        assert at < end <= len(prompt)
        negative = {token < 0 for token in prompt[at:end]}
        assert negative == {run_at(prompt.runs, at) is not None}
        assert uncut(prompt.runs, at) == at == position(prompt.runs, at)
        seen += prompt[at:end]
        at = end
    assert seen == prompt
