"""What the draft model has computed of whom."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.answer import Answer
from locallab.engine.caller import Caller
from locallab.engine.follower import FIRST_CHANCE, Follower
from locallab.engine.request import SamplingParams
from locallab.engine.sequence import Sequence
from tests.support.fake_llama import FakeModel


def sequence(tokens: Seq[int], owner: str = "") -> Sequence:
    answer = Answer(SamplingParams(), FakeModel())  # type: ignore[arg-type]
    return Sequence(0, list(tokens), len(tokens), 1000, answer, lambda event: None, caller=Caller(owner=owner))


def read(follower: Follower, each: Sequence, count: int) -> None:
    """Do as the draft model does: remove what is not the sequence's, compute the next tokens."""
    stream = follower.stream(each)
    assert stream is not None
    del stream.held[stream.same :]
    follower.computed(stream, each.tokens[stream.same : stream.same + count], known=True)


def test_the_last_token_is_always_lacking() -> None:
    """Its logits are the first guess, whoever has computed it before."""
    follower, first = Follower(2, 100, 64), sequence(range(20))
    assert follower.lacks(first) == 20
    read(follower, first, 20)
    follower.leave(first)
    again = sequence(range(20))
    assert follower.lacks(again) == 1
    again.tokens.append(77)
    assert follower.lacks(again) == 1 and follower.lacks(again) == 1, "the token that was computed is not computed again"


def test_a_wrong_guess_is_lacking_and_a_right_one_is_not() -> None:
    follower, each = Follower(1, 100, 64), sequence(range(10))
    read(follower, each, 10)
    stream = follower.stream(each)
    assert stream is not None and stream.held[stream.same :] == [9]
    follower.computed(stream, [9], known=True)
    follower.computed(stream, [10, 11, 12], known=False)
    each.tokens += [10, 11, 99]
    assert follower.lacks(each) == 1
    assert stream.held[stream.same :] == [12]


def test_a_stream_goes_to_one_sequence_at_a_time_and_best_to_who_shares_most() -> None:
    follower = Follower(2, 100, 64)
    one, two, three = sequence(range(30)), sequence(range(50, 70)), sequence([*range(30), 5])
    read(follower, one, 30)
    read(follower, two, 20)
    assert follower.lacks(three) is None, "both streams are taken"
    follower.leave(one)
    follower.leave(two)
    follower.leave(two)
    assert follower.lacks(three) == 1
    assert follower.lacks(sequence(range(30), owner="b")) == 30, "what another owner has asked shows"


def test_a_sequence_that_is_too_long_has_no_stream() -> None:
    follower, each = Follower(1, 10, 64), sequence(range(11))
    assert follower.lacks(each) is None


def test_with_a_window_no_more_is_taken_back_than_it_keeps() -> None:
    for kept, lacking in ((10, 1), (40, 31)):
        follower, each = Follower(1, 100, 64, rewinds=20), sequence(range(30))
        read(follower, each, 30)
        stream = follower.stream(each)
        assert stream is not None
        follower.computed(stream, [29], known=True)
        follower.computed(stream, list(range(200, 200 + kept)), known=False)
        each.tokens.append(5)
        assert follower.lacks(each) == lacking


def test_sequences_begin_with_the_chance_of_those_before() -> None:
    follower, first = Follower(1, 100, 64), sequence(range(5))
    assert follower.stream(first) and follower.chance(first) == pytest.approx(FIRST_CHANCE)
    for _ in range(100):
        follower.guessed(first, 0, 3)
    assert follower.chance(first) < 0.05
    follower.leave(first)
    second = sequence(range(5))
    assert follower.stream(second) and follower.chance(second) < 0.5
    for _ in range(200):
        follower.rest(second)
    assert follower.chance(second) == pytest.approx(follower._of[second].acceptance._origin, rel=0.05)


def test_nothing_is_left_when_it_ends() -> None:
    follower, each = Follower(1, 100, 64), sequence(range(5))
    assert follower.stream(each)
    follower.end()
    assert follower.lacks(each) is None


steps = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["say", "guess", "read", "leave"]), st.lists(st.integers(0, 2), max_size=5)),
    max_size=60,
)


@given(steps)
def test_what_counts_as_computed_is_what_lies_there(chosen: list[tuple[int, str, list[int]]]) -> None:
    """Five sequences that come and go on three streams: the tokens that a stream is said to share are its sequence's."""
    follower = Follower(3, 60, 16)
    live: dict[int, Sequence] = {}
    for name, step, tokens in chosen:
        each = live.setdefault(name, sequence([0, 1, name % 2]))
        if step == "leave":
            follower.leave(live.pop(name))
        elif step == "say":
            each.tokens += tokens
        elif (stream := follower.stream(each)) is not None:
            if step == "guess":
                del stream.held[stream.same :]
                follower.computed(stream, each.tokens[stream.same :], known=True)
                follower.computed(stream, tokens, known=False)
            else:
                read(follower, each, max(0, min(len(tokens), (follower.lacks(each) or 1) - 1)))
        for stream in follower._streams:
            owner = stream.sequence
            assert owner is None or stream.held[: stream.same] == owner.tokens[: stream.same]
        taken = [stream.sequence for stream in follower._streams if stream.sequence is not None]
        assert len(taken) == len(set(taken)) and set(taken) <= set(live.values())
        for each in live.values():
            assert (lacks := follower.lacks(each)) is None or 1 <= lacks <= len(each.tokens)
