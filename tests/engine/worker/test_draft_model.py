"""A draft model in the worker: answers are what they are without, whatever it guesses, and it follows what runs."""

from __future__ import annotations

import random

import pytest

from locallab.engine.caller import Caller
from locallab.settings import Layout
from tests.support.fake_llama import FakeGuide, Kind, answer, guided_answer, next_token, poor_guess
from tests.support.worker_rig import Rig

PROMPT = list(range(1, 41))
each_layout = pytest.mark.parametrize("layout", ["unified", "streams"])


def rig_of(layout: Layout = "unified", parallel: int = 4, **options: object) -> Rig:
    """Return a rig on which a step costs as much as ten tokens, and a guess a twentieth of it."""
    cells = 512 * (parallel if layout == "streams" else 1)
    settings = {"guesses": next_token, "step_cost": 0.01, "chunk": 64, "outputs": 64, **options}
    return Rig(layout=layout, cells=cells, parallel=parallel, **settings)  # type: ignore[arg-type]


def accepted(rig: Rig, id: int) -> tuple[int, int]:
    usage = rig.last(id).usage
    assert usage is not None
    return usage.accepted_tokens, usage.rejected_tokens


@each_layout
def test_guesses_that_are_all_right_save_most_steps(layout: Layout) -> None:
    rig = rig_of(layout)
    id = rig.submit(PROMPT, 200)
    steps = rig.drain()
    assert rig.tokens(id) == answer(PROMPT, 200)
    right, wrong = accepted(rig, id)
    assert steps < 50 and right > 150 and wrong == 0


@each_layout
@pytest.mark.parametrize("kind", ["attention", "window"])
def test_wrong_guesses_change_nothing(layout: Layout, kind: Kind) -> None:
    rig = rig_of(layout, guesses=poor_guess, draft_kind="attention", kind=kind)
    prompts = [[*PROMPT, i] for i in range(3)]
    ids = [rig.submit(prompt, 120) for prompt in prompts]
    steps = rig.drain()
    assert [rig.tokens(id) for id in ids] == [answer(prompt, 120) for prompt in prompts]
    right, wrong = map(sum, zip(*[accepted(rig, id) for id in ids], strict=True))
    assert right > 100 and wrong > 20 and steps < 130
    assert (rig.worker.totals.accepted_tokens, rig.worker.totals.rejected_tokens) == (right, wrong)


def test_a_model_that_guesses_nothing_right_is_soon_left_alone() -> None:
    rig = rig_of(guesses=lambda tokens: next_token(tokens) % 60 + 2)
    ids = [rig.submit([*PROMPT, i], 200) for i in range(3)]
    rig.drain()
    assert [rig.tokens(id) for id in ids] == [answer([*PROMPT, i], 200) for i in range(3)]
    assert rig.worker.totals.accepted_tokens + rig.worker.totals.rejected_tokens < 120


def test_a_model_as_slow_as_the_answer_guesses_nothing() -> None:
    rig = rig_of(guess_cost=0.01)
    assert rig.ask(PROMPT, 100) == answer(PROMPT, 100)
    assert rig.draft_context.decoded == 0


def test_a_short_answer_to_a_long_prompt_is_not_worth_reading() -> None:
    rig = rig_of(guess_cost=0.004, outputs=64)
    assert rig.ask(PROMPT * 10, 6) == answer(PROMPT * 10, 6)
    assert rig.draft_context.decoded == 0


def test_it_reads_beside_steps_in_pieces() -> None:
    """While it reads, the answer goes on, and no step takes longer than 20 ms: 10 for the answer, 0.25 for a token read."""
    rig = rig_of(chunk=20, guess_cost=0.002)
    id = rig.submit(PROMPT * 8, 150)
    pieces, before = [], 0
    while rig.worker._sequences:
        said = rig.worker.totals.completion_tokens
        rig.step()
        pieces.append((rig.draft_context.decoded - before, rig.worker.totals.completion_tokens - said))
        before = rig.draft_context.decoded
    read = [(computed, said) for computed, said in pieces if computed > 16]
    assert len(read) >= 6 and all(said >= 1 for _, said in read), "an answer waits for it"
    assert {computed for computed, _ in read[:-1]} == {40}
    rig.worker._hand_out()
    assert rig.tokens(id) == answer(PROMPT * 8, 150)


def test_the_next_turn_of_a_conversation_is_not_read_again() -> None:
    rig = rig_of()
    first = rig.ask(PROMPT * 3, 60)
    before = rig.draft_context.decoded
    again = [*PROMPT * 3, *first, 7]
    assert rig.ask(again, 40) == answer(again, 40)
    assert rig.draft_context.decoded - before < 60


def test_what_others_have_asked_is_no_shortcut() -> None:
    rig = rig_of()
    rig.submit(PROMPT * 3, 60, caller=Caller(owner="a"))
    rig.drain()
    before = rig.draft_context.decoded
    rig.submit(PROMPT * 3, 60, caller=Caller(owner="b"))
    rig.drain()
    assert rig.draft_context.decoded - before > 3 * len(PROMPT)


def test_there_are_fewer_streams_than_requests() -> None:
    rig = rig_of(draft_streams=1, step_cost=0.05)
    prompts = [[*PROMPT, i] for i in range(4)]
    ids = [rig.submit(prompt, 60) for prompt in prompts]
    rig.drain()
    assert [rig.tokens(id) for id in ids] == [answer(prompt, 60) for prompt in prompts]
    assert rig.worker.totals.accepted_tokens > 30


@each_layout
@pytest.mark.parametrize("params", [{}, {"logprobs": 2}])
def test_a_grammar_holds_at_each_guess(layout: Layout, params: dict[str, int]) -> None:
    rig = rig_of(layout)
    id = rig.submit(PROMPT, 120, guide=FakeGuide(PROMPT), **params)
    rig.drain()
    assert rig.tokens(id) == guided_answer(PROMPT, 120)


@pytest.mark.parametrize("limit", range(1, 20))
def test_an_answer_ends_inside_a_guess(limit: int) -> None:
    rig, said = rig_of(), answer(PROMPT, 100)
    id = rig.submit(PROMPT, 100, stop_token_ids=(said[40 + limit],))
    rig.drain()
    assert rig.tokens(id) == said[: said.index(said[40 + limit]) + 1]
    assert rig.last(id).finish_reason == "stop"


@pytest.mark.parametrize("failures", [1, 20])
def test_answers_can_do_without_it(failures: int) -> None:
    """When its decode fails it starts over, or drafts no more."""
    rig = rig_of()
    rig.draft_context.fails["decode"] = failures
    ids = [rig.submit([*PROMPT, i], 80) for i in range(3)]
    rig.drain()
    assert [rig.tokens(id) for id in ids] == [answer([*PROMPT, i], 80) for i in range(3)]
    assert all(rig.last(id).finish_reason == "length" for id in ids)
    assert (rig.worker.totals.accepted_tokens > 60) == (failures == 1)
    assert rig.draft_context.fails["decode"] == max(0, failures - 4), "it is asked again and again"


@each_layout
def test_whatever_comes_and_goes(layout: Layout) -> None:
    """Requests of all lengths that come, are cancelled, and take turns in a small pool, with decodes that fail now and then;
    the rig checks each step."""
    chosen = random.Random(layout)
    streams = 2 if layout == "unified" else 3
    rig = rig_of(layout, 3, guesses=poor_guess, draft_streams=streams, step_cost=0.05, cache_cells=64, host_bytes=4096)
    asked: dict[int, list[int]] = {}
    for turn in range(25):
        fails = (rig.draft_context, "decode") if turn in (8, 16) else (rig.context, "crash" if turn % 2 else "decode")
        fails[0].fails[fails[1]] += turn % 4 == 0
        prompt = PROMPT[: chosen.randrange(1, 40)] + [chosen.randrange(1, 64) for _ in range(chosen.randrange(1, 30))]
        asked[id := rig.submit(prompt, chosen.randrange(1, 120))] = prompt
        for _ in range(chosen.randrange(12)):
            rig.step()
        if chosen.random() < 0.2:
            rig.cancel(id)
    rig.drain()
    for id, prompt in asked.items():
        assert rig.tokens(id) == answer(prompt, len(rig.tokens(id)))
    assert rig.worker.totals.accepted_tokens > 200
    assert rig.follower is not None and not rig.follower._of, "a stream is not given back"
