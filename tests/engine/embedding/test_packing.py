"""Packing into batches: pure, so every case can be tried."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future

from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.caller import LOCAL, Caller
from locallab.engine.embedding.packing import EmbedJob, Packing

TOKENS, SEQUENCES = 20, 4


ANN, BOB = Caller(id="ann"), Caller(id="bob", weight=2)


def job(*lengths: int, caller: Caller = LOCAL) -> EmbedJob:
    return EmbedJob([[0] * length for length in lengths], Future(), caller)


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), max_size=8))
def test_every_sequence_is_taken_once_and_no_batch_is_too_large(requests: list[list[int]]) -> None:
    jobs = [job(*lengths) for lengths in requests]
    packing = Packing(TOKENS, SEQUENCES)
    for each in jobs:
        packing.add(each)
    taken = []
    while batch := packing.take():
        assert len(batch) <= SEQUENCES
        assert len(batch) == 1 or sum(len(j.sequences[place]) for j, place in batch) <= TOKENS
        taken += [(jobs.index(j), place) for j, place in batch]
    assert len(packing) == 0
    assert sorted(taken) == [(n, place) for n, lengths in enumerate(requests) for place in range(len(lengths))]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 30))
def test_a_question_joins_the_next_batch_but_one_at_the_latest(corpus: list[int], question: int) -> None:
    packing = Packing(TOKENS, SEQUENCES)
    packing.add(job(*corpus))
    packing.take()
    short = job(question)
    packing.add(short)
    batches = [packing.take(), packing.take(), packing.take()]
    assert any(j is short for batch in batches for j, _ in batch)


def test_requests_take_turns() -> None:
    packing = Packing(100, 4)
    first, second = job(1, 1, 1, 1, 1, 1), job(1, 1)
    packing.add(first)
    packing.add(second)
    assert packing.take() == [(first, 0), (second, 0), (first, 1), (second, 1)]
    assert packing.take() == [(first, 2), (first, 3), (first, 4), (first, 5)]


def test_a_sequence_longer_than_a_batch_goes_alone() -> None:
    packing = Packing(TOKENS, SEQUENCES)
    long, short = job(25), job(2, 2)
    packing.add(short)
    packing.add(long)
    assert packing.take() == [(short, 0)]
    assert packing.take() == [(long, 0)]
    assert packing.take() == [(short, 1)]


def test_what_was_cancelled_is_left_out() -> None:
    packing = Packing(TOKENS, SEQUENCES)
    gone, here = job(1, 1, 1), job(1)
    packing.add(gone)
    packing.add(here)
    gone.future.cancel()
    assert packing.take() == [(here, 0)]
    assert packing.take() == [] and len(packing) == 0


def test_all_that_is_left_can_be_given_up() -> None:
    packing = Packing(TOKENS, SEQUENCES)
    left = [job(1), job(1)]
    for each in left:
        packing.add(each)
    assert list(packing.drain()) == left
    assert len(packing) == 0


def test_callers_take_turns_by_tokens_and_weight() -> None:
    packing = Packing(1000, 12)
    for _ in range(50):
        packing.add(job(2, caller=ANN))
    packing.take()
    packing.add(job(*[1] * 40, caller=LOCAL))
    packing.add(job(*[2] * 40, caller=BOB))
    batches = [packing.take() for _ in range(3)]
    tokens = Counter({caller.id: 0 for caller in (ANN, BOB, LOCAL)})
    for each, place in (entry for batch in batches for entry in batch):
        tokens[each.caller.id] += len(each.sequences[place])
    assert abs(tokens[BOB.id] - 2 * tokens[ANN.id]) <= 4 and abs(tokens[ANN.id] - tokens[LOCAL.id]) <= 2


def test_out_of_a_full_queue_goes_the_last_of_who_has_most() -> None:
    packing = Packing(TOKENS, 1)
    jobs = [job(1, 1, caller=ANN) for _ in range(3)]
    for each in jobs:
        packing.add(each)
    packing.take()
    newest = job(1, caller=LOCAL)
    packing.add(newest)
    assert packing.crowded_out(newest) is jobs[2]
    packing = Packing(TOKENS, 1)
    packing.add(job(1, caller=ANN))
    packing.add(newest)
    assert packing.crowded_out(newest) is newest
    assert len(packing) == 1
