"""Drafts in the worker: answers are what they are without, whatever is right of a draft."""

from __future__ import annotations

import pytest

from locallab.settings import Layout
from tests.support.fake_llama import REPEATER, FakeGuide, Kind, answer, guided_answer
from tests.support.worker_rig import Rig

PROMPT = [REPEATER, 2, 3, 4, 6, 7] * 3
each_layout = pytest.mark.parametrize("layout", ["unified", "streams"])
each_kind = pytest.mark.parametrize("kind", ["attention", "window"])


def rig_of(layout: Layout = "unified", kind: Kind = "attention", parallel: int = 4, **options: int) -> Rig:
    """Return a rig on which a step costs as much as ten tokens."""
    cells = 512 * (parallel if layout == "streams" else 1)
    return Rig(layout=layout, kind=kind, cells=cells, parallel=parallel, step_cost=0.01, chunk=64, outputs=64, **options)


@each_layout
@each_kind
def test_an_answer_that_repeats_itself_takes_fewer_steps(layout: Layout, kind: Kind) -> None:
    rig = rig_of(layout, kind)
    id = rig.submit(PROMPT, 200)
    steps = rig.drain()
    assert rig.tokens(id) == answer(PROMPT, 200)
    usage, totals = rig.last(id).usage, rig.worker.totals
    assert usage is not None and usage.completion_tokens == 200
    assert steps < 130 and usage.accepted_tokens > 60 and usage.rejected_tokens > 0
    assert (totals.accepted_tokens, totals.rejected_tokens) == (usage.accepted_tokens, usage.rejected_tokens)
    assert [event.finish_reason for event in rig.events[id]].count("length") == 1


@each_layout
def test_several_drafts_are_verified_in_one_batch(layout: Layout) -> None:
    rig = rig_of(layout)
    prompts = [[*PROMPT, i] for i in range(10, 13)]
    ids = [rig.submit(prompt, 150) for prompt in prompts]
    other = rig.submit([1, 2, 3], 60)
    steps = rig.drain()
    assert [rig.tokens(id) for id in ids] == [answer(prompt, 150) for prompt in prompts]
    assert rig.tokens(other) == answer([1, 2, 3], 60)
    assert rig.worker.totals.accepted_tokens > 100 and steps < 140


def test_a_memory_that_cannot_be_rewound_gets_no_draft() -> None:
    rig = rig_of(kind="recurrent")
    assert rig.ask(PROMPT, 50) == answer(PROMPT, 50)
    assert rig.worker.totals.accepted_tokens + rig.worker.totals.rejected_tokens == 0


def test_an_answer_that_copies_nothing_gets_no_draft() -> None:
    rig = rig_of()
    assert rig.ask([1, 2, 3], 150) == answer([1, 2, 3], 150)
    assert rig.worker.totals.accepted_tokens + rig.worker.totals.rejected_tokens < 10


@each_layout
def test_a_prediction_is_verified_from_the_first_tokens_on(layout: Layout) -> None:
    rig, said = rig_of(layout), answer([1, 2, 3], 100)
    id = rig.submit([1, 2, 3], 100, prediction=(*said[:40], 9, *said[40:]))
    assert rig.drain() < 70
    usage = rig.last(id).usage
    assert rig.tokens(id) == said and usage is not None and usage.accepted_tokens > 50


@pytest.mark.parametrize("limit", range(1, 30))
def test_an_answer_ends_inside_a_draft(limit: int) -> None:
    """By its length or by a stop token; what was computed beyond its end is gone (the rig looks)."""
    rig, said = rig_of(), answer(PROMPT, 100)
    assert rig.ask(PROMPT, 40 + limit) == said[: 40 + limit]
    rig = rig_of()
    id = rig.submit(PROMPT, 100, stop_token_ids=(said[40 + limit],))
    rig.drain()
    assert rig.tokens(id) == said[: said.index(said[40 + limit]) + 1]
    assert rig.last(id).finish_reason == "stop"
    again = rig.submit([*PROMPT, *rig.tokens(id)[:-1], 3], 5)
    rig.drain()
    assert rig.tokens(again) == answer(rig.prompts[again], 5)


@each_layout
@pytest.mark.parametrize("params", [{}, {"logprobs": 2}])
def test_a_grammar_holds_at_each_token_of_a_draft(layout: Layout, params: dict[str, int]) -> None:
    rig = rig_of(layout)
    id = rig.submit(PROMPT, 120, guide=FakeGuide(PROMPT), **params)
    rig.drain()
    assert rig.tokens(id) == guided_answer(PROMPT, 120)
    told = [each.token for event in rig.events[id] for each in event.logprobs]
    assert told == (rig.tokens(id) if params else [])


def test_drafts_take_no_cells_that_are_not_free() -> None:
    rig = Rig(cells=150, parallel=2, step_cost=0.01, chunk=64, outputs=64, cache_cells=0)
    ids = [rig.submit([*PROMPT, i], 50) for i in (10, 11)]
    rig.drain()
    assert [rig.tokens(id) for id in ids] == [answer([*PROMPT, i], 50) for i in (10, 11)]


def test_drafts_leave_outputs_to_a_prompt_whose_log_probabilities_are_wanted() -> None:
    """The fake context refuses more outputs than it has been told of."""
    rig = Rig(cells=512, parallel=4, step_cost=0.01, chunk=64, outputs=8)
    drafting = [rig.submit([*PROMPT, i], 120) for i in (10, 11)]
    for _ in range(60):
        rig.step()
    scored = [rig.submit(list(range(i, 50)), 5, logprobs=1, prompt_logprobs=True) for i in (1, 2)]
    rig.drain()
    for id in (*drafting, *scored):
        assert rig.tokens(id) == answer(rig.prompts[id], 120 if id in drafting else 5)
    assert rig.worker.totals.accepted_tokens > 20
