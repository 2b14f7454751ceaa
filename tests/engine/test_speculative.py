"""Drafts: where they come from, and for whom they pay."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.speculative import LONGEST, NGRAM, PRIOR, Acceptance, Candidate, Draft, Lookup, gain, lengths

texts = st.lists(st.integers(0, 3), max_size=60)


def copied(lookup: Lookup, text: Sequence[int]) -> int:
    """Let an answer say `text`; return how many of its tokens a draft of one had right."""
    right = 0
    for token in text:
        right += lookup.draft(1) == [token]
        lookup.read([token])
    return right


@given(texts, texts, st.integers(0, 20))
def test_a_draft_is_what_followed_the_last_tokens_before(text: list[int], said: list[int], most: int) -> None:
    lookup = Lookup(text)
    lookup.read(said)
    known, draft = text + said, lookup.draft(most)
    assert len(draft) in (0, most) and lookup.reach(most) == len(draft)
    if draft:
        ends = range(1, len(known))
        sources = [known[end:] for end in ends]
        assert any(all(source[i % len(source)] == token for i, token in enumerate(draft)) for source in sources)
    repeated = any(known[i : i + NGRAM] == known[-NGRAM:] for i in range(len(known) - NGRAM))
    assert bool(draft) or not (repeated and most)


@given(texts, texts, texts)
def test_reading_piece_by_piece_is_reading_at_once(text: list[int], said: list[int], prediction: list[int]) -> None:
    whole, single = Lookup(text, prediction), Lookup(text, prediction)
    whole.read(said)
    for token in said:
        single.read([token])
    assert single.draft(8) == whole.draft(8) or whole.chance != single.chance


def test_a_copy_with_changes_goes_on_behind_each_change() -> None:
    source = [*range(10, 30), 1, 2, 3, *range(40, 60), 1, 2, 3, *range(70, 90)]
    answer = [*source[:5], 5, 6, *source[7:30], *source[30:]]
    lookup = Lookup([*source, 99])
    assert copied(lookup, answer) >= len(answer) - 2 - 3 * NGRAM
    lookup = Lookup([*source, 99])
    lookup.read(source[:43])
    assert lookup.draft(3) == [1, 2, 3]
    lookup.read([1, 2, 3])
    assert lookup.draft(2) == [70, 71], "not what followed the same tokens earlier"


def test_what_repeats_itself_is_taken_to_go_on() -> None:
    assert Lookup([1, 2, 3, 1, 2, 3, 1, 2]).draft(7) == [3, 1, 2, 3, 1, 2, 3]


def test_a_prediction_is_followed_from_the_first_token() -> None:
    lookup = Lookup([1, 2, 3], prediction=[7, 8, 9])
    lookup.read([7])
    assert lookup.draft(5) == [8, 9]
    lookup.read([8, 9])
    assert lookup.draft(5) == [], "nothing is known to follow it"


def test_the_chance_follows_what_was_right_last() -> None:
    lookup = Lookup([], prediction=range(1, 200))
    assert lookup.chance == PRIOR[0]
    lookup.read(range(1, 40))
    assert lookup.chance > 0.95
    before = lookup.chance
    lookup.read([500])
    assert lookup.chance < before


def test_a_gain_is_that_of_each_token_if_all_before_are_right() -> None:
    assert gain(0.5, 3) == pytest.approx(0.5 + 0.25 + 0.125)
    assert gain(1.0, 7) == 7


def linear(answers: int, token: float) -> object:
    """Return the cost of steps of 10 ms whose drafted tokens take `token` seconds each."""
    return lambda drafting, length, guessing: 0.010 + drafting * length * token


@pytest.mark.parametrize(
    ("chance", "token", "length"), [(0.99, 0.0, LONGEST), (0.9, 0.002, 7), (0.9, 0.008, 1), (0.3, 0.005, 0)]
)
def test_a_draft_is_as_long_as_it_pays(chance: float, token: float, length: int) -> None:
    assert lengths([Candidate(chance, 100)], 1, 100, 9.0, linear(1, token)) == [Draft(length)]  # type: ignore[arg-type]


def test_a_draft_beside_many_answers_must_be_surer() -> None:
    for answers, drafted in ((1, True), (32, False)):
        found = lengths([Candidate(0.8, 100)], answers, 100, 9.0, linear(answers, 0.004))  # type: ignore[arg-type]
        assert (found[0].length > 0) == drafted


@given(
    st.lists(st.builds(Candidate, st.floats(0, 1), st.integers(0, 80)), max_size=8),
    st.integers(0, 5),
    st.integers(0, 200),
    st.floats(0.0001, 0.01),
    st.floats(0.01, 0.5),
)
def test_drafts_keep_to_room_and_time(
    candidates: list[Candidate], others: int, room: int, token: float, seconds: float
) -> None:
    cost = linear(1, token)
    drafts = lengths(candidates, len(candidates) + others, room, seconds, cost)  # type: ignore[arg-type]
    found = [draft.length for draft in drafts]
    assert len(found) == len(candidates) and sum(found) <= room and len({*found} - {0}) <= 1
    assert all(length <= each.most for length, each in zip(found, candidates, strict=True))
    drafting = sum(length > 0 for length in found)
    assert not drafting or cost(drafting, max(found), 0) <= seconds  # type: ignore[operator]
    unsure = [each.chance for each, length in zip(candidates, found, strict=True) if not length and each.most >= max(found)]
    assert not drafting or max(unsure, default=0) <= min(c.chance for c, n in zip(candidates, found, strict=True) if n)


def guesses_cost(step: float) -> object:
    """Return the cost of steps of 10 ms and 1 ms for each drafted token, where a token of all guesses takes `step` seconds."""
    return lambda drafting, length, guessing: 0.010 + drafting * length * 0.001 + (length * step if guessing else 0)


def test_what_is_found_goes_before_what_would_have_to_be_guessed() -> None:
    """Unless guesses are so much surer that they are worth their time."""
    cheap, dear = guesses_cost(0.0001), guesses_cost(0.002)
    assert lengths([Candidate(0.8, 100, 0.8, 15)], 1, 100, 9.0, cheap)[0].guessed is False  # type: ignore[arg-type]
    assert lengths([Candidate(0.3, 100, 0.9, 15)], 1, 100, 9.0, cheap)[0].guessed is True  # type: ignore[arg-type]
    assert lengths([Candidate(0.8, 100, 0.82, 15)], 1, 100, 9.0, dear)[0].guessed is False  # type: ignore[arg-type]


def test_each_answer_has_the_draft_that_suits_it() -> None:
    found = lengths([Candidate(0.95, 100), Candidate(0.4, 100, 0.9, 15)], 2, 100, 9.0, guesses_cost(0.0001))  # type: ignore[arg-type]
    assert [draft.guessed for draft in found] == [False, True] and found[0].length == found[1].length > 0


def test_a_guess_that_is_hardly_surer_is_not_worth_its_time() -> None:
    def cost(drafting: int, length: int, guessing: int) -> float:
        return 0.010 + drafting * length * 0.0002 + guessing * length * 0.0002

    found = lengths([Candidate(0.9, 100, 0.91, 15), Candidate(0.0, 0, 0.9, 15)], 2, 100, 9.0, cost)
    assert [draft.guessed for draft in found] == [False, True] and found[0].length > 0


def test_nothing_is_guessed_where_guessing_takes_as_long_as_answering() -> None:
    assert lengths([Candidate(0.0, 0, 0.9, 15)], 1, 100, 9.0, guesses_cost(0.010)) == [Draft(0)]  # type: ignore[arg-type]
    assert lengths([Candidate(0.0, 0, 0.9, 15)], 1, 100, 9.0, guesses_cost(0.001))[0].guessed  # type: ignore[arg-type]


@given(
    st.lists(st.builds(Candidate, *[st.floats(0, 1), st.integers(0, 80)] * 2), max_size=8),
    st.integers(0, 5),
    st.integers(0, 200),
    st.floats(0.00001, 0.01),
    st.floats(0.01, 0.5),
)
def test_guesses_too_keep_to_room_and_time(
    candidates: list[Candidate], others: int, room: int, step: float, seconds: float
) -> None:
    cost = guesses_cost(step)
    drafts = lengths(candidates, len(candidates) + others, room, seconds, cost)  # type: ignore[arg-type]
    found = [draft.length for draft in drafts]
    assert sum(found) <= room and len({*found} - {0}) <= 1
    for each, draft in zip(candidates, drafts, strict=True):
        assert draft.length <= (each.guessable if draft.guessed else each.most)
    drafting, guessing = sum(length > 0 for length in found), sum(draft.guessed for draft in drafts)
    assert not drafting or cost(drafting, max(found), guessing) <= seconds  # type: ignore[operator]


def test_the_chance_of_a_guess_is_that_of_the_last_ones() -> None:
    good = Acceptance(0.5)
    for _ in range(20):
        good.see(7, 7)
    assert good.chance > 0.95
    bad = Acceptance(0.5)
    for _ in range(20):
        bad.see(0, 7)
    assert bad.chance < 0.1
    before = bad.chance
    for _ in range(300):
        bad.rest()
    assert before < bad.chance < 0.5 + 1e-6, "text that could not be guessed may be over"


def test_only_the_first_wrong_guess_counts() -> None:
    one, other = Acceptance(0.5), Acceptance(0.5)
    one.see(2, 3)
    other.see(2, 15)
    assert one.chance == other.chance
