from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.reasoning_budget import ReasoningTracker
from locallab.engine.request import ReasoningBudget


def spent(budget: ReasoningBudget, *tokens: str) -> list[bool]:
    thinking = ReasoningTracker(budget)
    return [thinking.spend(token.encode()) for token in tokens]


@pytest.mark.parametrize(
    ("open", "tokens", "at"),
    [
        (True, ["a", "b", "c", "d"], 2),
        (True, ["a", "b</", "think>", "d"], None),
        (True, ["a", "</think>", "c", "d"], None),
        (False, ["<think>", "a", "b", "c", "d"], 3),
        (False, ["\n", "<th", "ink>", "a", "b", "c"], 5),
        (False, ["Hello", "a", "b", "c", "d"], None),
    ],
)
def test_reasoning_ends_where_its_budget_does(open: bool, tokens: list[str], at: int | None) -> None:
    told = spent(ReasoningBudget(3, "<think>", "</think>", open), *tokens)
    assert [index for index, now in enumerate(told) if now] == ([] if at is None else [at])


def test_no_character_is_torn() -> None:
    thinking = ReasoningTracker(ReasoningBudget(1, "<think>", "</think>", True))
    euro = "€".encode()
    assert [thinking.spend(euro[at : at + 1]) for at in range(3)] == [False, False, True]


@given(st.lists(st.text(max_size=4), max_size=30), st.integers(1, 9), st.booleans())
def test_it_is_told_once_at_most(tokens: list[str], budget: int, open: bool) -> None:
    assert sum(spent(ReasoningBudget(budget, "<think>", "</think>", open), *tokens)) <= 1
