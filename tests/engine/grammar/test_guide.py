"""Forced tokens are known at once: their scheduling, counting and ends. The worker on a fake context."""

from __future__ import annotations

import dataclasses

import pytest

from locallab.errors import EngineFailure
from tests.support.fake_llama import FakeGuide, answer, forced, guided_answer, next_token
from tests.support.worker_rig import Rig

PROMPT = [5, 6, 7]


def prompt_that_forces(count: int) -> list[int]:
    """Return a prompt after which an answer must begin with exactly `count` tokens, the last of which forces no more."""
    return next([1, 2, token] for token in range(1, 60) if len(forced(token)) == count)


def test_forced_tokens_are_said_without_being_drawn_and_cost_one_step() -> None:
    prompt = prompt_that_forces(7)
    rig = Rig()
    id = rig.submit(prompt, 8, guide=FakeGuide(prompt))
    assert rig.drain() == 2
    assert [len(event.token_ids) for event in rig.events[id] if event.token_ids] == [7, 1]
    assert rig.tokens(id) == [*forced(prompt[-1]), next_token([*prompt, *forced(prompt[-1])])]
    assert rig.last(id).usage.completion_tokens == rig.worker.totals.completion_tokens == 8
    assert rig.context.decoded == len(prompt) + 7


def test_more_than_a_few_forced_tokens_are_computed_as_a_prompt_is() -> None:
    prompt = prompt_that_forces(40)
    rig = Rig(cells=512, batch=128, chunk=8)
    reader = rig.submit(PROMPT, 30)
    id = rig.submit(prompt, 41, guide=FakeGuide(prompt))
    rig.step()
    sequence = rig.scheduler.running[-1]
    pending = []
    while rig.last_or_none(id) is None:
        pending.append(sequence.pending)
        rig.step()
        rig.worker._hand_out()
    assert pending == [40, 24, 8], "chunks of a prompt, then what is left at once"
    rig.drain()
    assert rig.tokens(id) == guided_answer(prompt, 41) and rig.tokens(reader) == answer(PROMPT, 30)


@pytest.mark.parametrize("limit", range(1, 12))
def test_an_answer_ends_in_the_middle_of_what_is_forced(limit: int) -> None:
    prompt = prompt_that_forces(7)
    rig = Rig()
    id = rig.submit(prompt, limit, guide=FakeGuide(prompt))
    rig.drain()
    assert rig.tokens(id) == guided_answer(prompt, limit)
    assert rig.last(id).finish_reason == "length"
    assert rig.last(id).usage.completion_tokens == limit


def test_a_stop_string_in_what_is_forced_ends_the_answer_there() -> None:
    prompt = prompt_that_forces(7)
    tokens = forced(prompt[-1])
    rig = Rig()
    id = rig.submit(prompt, 20, guide=FakeGuide(prompt), stop=(f"<{tokens[4]}>",))
    rig.drain()
    assert "".join(event.text for event in rig.events[id]) == "".join(f"<{token}>" for token in tokens[:4])
    assert rig.last(id).finish_reason == "stop"
    assert rig.last(id).usage.completion_tokens == len(rig.tokens(id)) == 5


def test_a_stop_token_in_what_is_forced_ends_the_answer_there() -> None:
    prompt = prompt_that_forces(7)
    tokens = forced(prompt[-1])
    rig = Rig()
    id = rig.submit(prompt, 20, guide=FakeGuide(prompt), stop_token_ids=(tokens[2],))
    rig.drain()
    assert rig.tokens(id) == tokens[:3] and rig.last(id).finish_reason == "stop"


def test_an_answer_that_is_complete_ends_even_where_it_may_not_grow() -> None:
    prompt = prompt_that_forces(7)
    rig = Rig()
    ids = []
    for limit in (6, 7, 8):
        guide = FakeGuide(prompt)
        guide.complete = True
        ids.append(rig.submit(prompt, limit, guide=guide))
    rig.drain()
    assert [(len(rig.tokens(id)), rig.last(id).finish_reason) for id in ids] == [(6, "length"), (7, "stop"), (7, "stop")]


def test_a_reader_goes_on_beside_a_long_prompt_and_what_is_forced_comes_first() -> None:
    prompt = prompt_that_forces(7)
    rig = Rig(cells=512, chunk=16)
    reader = rig.submit(PROMPT, 30)
    rig.step()
    guided = rig.submit(prompt, 8, guide=FakeGuide(prompt))
    rig.step()
    rig.submit([9] * 300, 1)
    assert [chunk.count for chunk in rig.scheduler.plan().batches[0]] == [1, 7, 16]
    for n in range(3, 10):
        rig.step()
        rig.worker._hand_out()
        assert len(rig.tokens(reader)) == n
    assert rig.last(guided).finish_reason == "length"
    rig.drain()


def test_what_is_forced_on_many_shares_the_budget_and_nobody_stands_still() -> None:
    prompts = [[n, *prompt_that_forces(7)] for n in range(1, 9)]
    rig = Rig(cells=512, parallel=8, chunk=16)
    ids = [rig.submit(prompt, 8, guide=FakeGuide(prompt)) for prompt in prompts]
    rig.scheduler._chunking.limits = dataclasses.replace(rig.limits, step_seconds=1.0)  # all prompts in one step
    rig.step()
    assert [sequence.pending for sequence in rig.scheduler.running] == [7] * 8
    rig.scheduler._chunking.limits = rig.limits
    counts = [chunk.count for batch in rig.scheduler.plan().batches for chunk in batch]
    assert counts == [7, 7, 5, 1, 1, 1, 1, 1]
    rig.drain()
    assert [rig.tokens(id) for id in ids] == [guided_answer(prompt, 8) for prompt in prompts]


def test_forced_tokens_are_batched_below_a_tile() -> None:
    prompts = [[n, *prompt_that_forces(7)] for n in range(1, 4)]
    rig = Rig(cells=512, chunk=64, tile=16)
    for prompt in prompts:
        rig.submit(prompt, 8, guide=FakeGuide(prompt))
    while any(sequence.pending != 7 for sequence in rig.scheduler.running) or rig.scheduler.waiting:
        rig.step()
    assert [[chunk.count for chunk in batch] for batch in rig.scheduler.plan().batches] == [[7, 7], [7]]


def test_a_batch_never_holds_more_than_it_can() -> None:
    rig = Rig(cells=512, parallel=40, slots=60, batch=32, chunk=16)
    ids = [rig.submit([1 + n % 60, 1 + n], 6) for n in range(40)]
    rig.drain()
    assert [rig.tokens(id) for id in ids] == [answer([1 + n % 60, 1 + n], 6) for n in range(40)]


def test_a_full_pool_forgets_what_was_computed_and_not_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locallab.engine.scheduler.LOOKAHEAD", 1)
    prompts = [[n + 1] * 8 for n in range(4)]
    rig = Rig(cells=64, parallel=4, cache_cells=0)
    ids = [rig.submit(prompt, 40, guide=FakeGuide(prompt)) for prompt in prompts]
    rig.drain()
    assert rig.scheduler.preemptions > 0
    assert [rig.tokens(id) for id in ids] == [guided_answer(prompt, 40) for prompt in prompts]


def test_a_grammar_that_fails_ends_its_own_request_only() -> None:
    rig = Rig()
    lost = rig.submit(PROMPT, 8, guide=FakeGuide([1], fails=True))
    fine = rig.submit([1, 2, 3], 8, guide=FakeGuide([1, 2, 3]))
    free = rig.submit([3, 2, 1], 8)
    rig.drain()
    assert rig.last(lost).finish_reason == "error" and isinstance(rig.last(lost).error, EngineFailure)
    assert rig.tokens(fine) == guided_answer([1, 2, 3], 8)
    assert rig.tokens(free) == answer([3, 2, 1], 8)


def test_a_request_without_a_grammar_waits_for_no_mask() -> None:
    rig = Rig()
    rig.submit([3, 2, 1], 8)
    rig.drain()
    assert rig.masks.waits == 0
    prompt = prompt_that_forces(0)
    free = rig.submit([1, 2, 3], 2)
    rig.submit(prompt, 2, guide=FakeGuide(prompt))
    before: list[int] = []
    wait = rig.masks.wait
    rig.masks.wait = lambda: (before.append(sum(len(event.token_ids) for _, event in rig.worker._events)), wait())[1]  # type: ignore[method-assign]
    rig.step()
    assert before == [1], "the other one's token was not ready first"
    rig.drain()
    assert rig.tokens(free) == answer([1, 2, 3], 2)


def test_a_request_cancelled_in_the_middle_leaves_nothing() -> None:
    prompt = prompt_that_forces(7)
    rig = Rig(cache_cells=0)
    for steps in range(5):
        id = rig.submit(prompt, 40, guide=FakeGuide(prompt))
        for _ in range(steps):
            rig.step()
        rig.cancel(id)
        rig.drain()
        assert rig.last(id).finish_reason == "cancelled"
        assert rig.tokens(id) == guided_answer(prompt, 40)[: rig.last(id).usage.completion_tokens]
    assert not rig.worker._sequences
