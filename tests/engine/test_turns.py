"""Turns between sets of adapters: each has one again and again, no caller takes more of them, readers hardly wait longer."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.adapters import BASE, AdapterSet, chosen
from locallab.engine.answer import Answer
from locallab.engine.caller import Caller
from locallab.engine.costs import StepCosts
from locallab.engine.request import SamplingParams
from locallab.engine.sequence import Sequence
from locallab.engine.turns import Turns
from tests.support.fake_llama import ADAPTERS, FakeModel
from tests.support.simulation import quantile, simulate, streams

STEP = 0.2
SETS = tuple(chosen(ADAPTERS, ((0, scale),)) for scale in (0.0, 0.25, 0.5, 0.75, 1.0))
ANN, BOB = Caller(id="ann"), Caller(id="bob")
numbers = itertools.count()


def costs(token: float = 0.045, switch: float = 0.0) -> StepCosts:
    found = StepCosts()
    found._decode.coefficients = (0.0, token, 0.0)
    found.switch_seconds = switch
    return found


def asked(adapters: AdapterSet, caller: Caller = ANN) -> Sequence:
    answer = Answer(SamplingParams(), FakeModel())  # type: ignore[arg-type]
    return Sequence(next(numbers), [1], 1, 9, answer, lambda event: None, caller=caller, adapters=adapters)


def turn(turns: Turns, running: list[Sequence]) -> AdapterSet:
    """Return whose turn the next step is, with all that run reading their answers."""
    decoding, prefilling, others = turns.split(running, running)
    assert not prefilling and len(decoding) + len(others) == len(running)
    [mine] = {each.adapters for each in decoding}
    assert mine not in {each.adapters for each in others}
    return mine


def test_the_model_alone_has_every_turn() -> None:
    turns, running = Turns(costs(), STEP), [asked(BASE), asked(BASE, BOB)]
    assert turns.split(running, running[:1]) == (running[:1], running[1:], [])
    assert turns.split([], []) == ([], [], [])


def test_sets_have_turns_one_after_the_other() -> None:
    turns, running = Turns(costs(), STEP), [asked(each) for each in (BASE, *SETS[1:3], BASE)]
    found = [turn(turns, running) for _ in range(9)]
    assert found[:3] == found[3:6] == found[6:] and set(found[:3]) == {BASE, *SETS[1:3]}


def test_who_comes_new_waits_for_those_who_wait() -> None:
    turns, running = Turns(costs(), STEP), [asked(BASE)]
    assert turn(turns, running) == BASE
    running.append(asked(SETS[1]))
    assert turn(turns, running) == SETS[1], "the set that has just been computed need not go first"
    running.append(asked(SETS[2]))
    assert [turn(turns, running) for _ in range(3)] == [BASE, SETS[2], SETS[1]]


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.integers(0, 4), st.sampled_from([ANN, BOB, Caller(id="cid")]), st.booleans(), st.integers(0, 50)
        ),
        max_size=60,
    )
)
def test_nobody_starves(changes: list[tuple[bool, int, Caller, bool, int]]) -> None:
    """Whoever comes and goes, reads or has a prompt: each is computed after a number of steps that depends on who is there."""
    turns, running = Turns(costs(), STEP), [asked(BASE)]
    reads, waited = set(running), Counter[Sequence]()
    for comes, number, caller, reading, which in changes:
        if comes or len(running) < 2:
            running.append(asked(SETS[number], caller))
            reads |= {running[-1]} if reading else set()
        else:
            waited.pop(running.pop(which % len(running)), None)
        for _ in range(which):
            decoding = [each for each in running if each in reads]
            mine, prompts, others = turns.split(running, decoding)
            assert len({each.adapters for each in (*mine, *prompts)}) == 1
            assert set(mine) | set(others) == set(decoding) and not set(prompts) & reads
            for each in running:
                waited[each] = 0 if each in mine or each in prompts else waited[each] + 1
        assert max(waited.values(), default=0) <= (len(SETS) + 1) * 3 * len(SETS)


def test_a_caller_with_many_sets_has_no_more_turns() -> None:
    turns = Turns(costs(), STEP)
    running = [*(asked(each, ANN) for each in SETS[1:]), asked(BASE, BOB)]
    found = Counter(turn(turns, running) == BASE for _ in range(80))
    assert 38 <= found[True] <= 40, "at first each set has a turn"


@pytest.mark.parametrize(("switch", "steps"), [(0.0, 1), (0.004, 1), (0.012, 3), (0.5, 5)])
def test_a_turn_is_as_long_as_the_switch_is_dear_but_no_longer_than_a_step_may_be(switch: float, steps: int) -> None:
    turns, running = Turns(costs(switch=switch), STEP), [asked(BASE), asked(SETS[1])]
    found = [turn(turns, running) for _ in range(30)]
    lengths = [len(list(group)) for _, group in itertools.groupby(found)]
    assert set(lengths[1:-1]) == {steps}


def test_a_turn_with_a_prompt_is_one_step() -> None:
    turns, reader = Turns(costs(switch=0.5), STEP), asked(BASE)
    running = [reader, asked(SETS[1])]
    found = [turns.split(running, [reader]) for _ in range(12)]
    prompts = [bool(prefilling) for _, prefilling, _ in found]
    assert not any(one and other for one, other in itertools.pairwise(prompts)) and any(prompts)


def test_readers_notice_the_long_prompts_of_two_other_sets_as_they_do_those_of_their_own() -> None:
    limits = streams(8)
    clients = [*[[(20, 200)]] * 4, *[[(1500, 4)] * 4] * 2]
    same = simulate(limits, clients)
    apart = simulate(limits, clients, adapters=[BASE] * 4 + [SETS[1], SETS[2]])
    assert apart.tokens == same.tokens and apart.seconds < 1.05 * same.seconds
    assert quantile(apart.gaps, 0.99) < 1.1 * quantile(same.gaps, 0.99)
    assert max(apart.first) < 1.2 * max(same.first)


def test_as_many_tokens_come_with_two_sets_as_two_halves_give() -> None:
    """What is lost is the sharing of a step: two steps for four answers each take as long as they do alone."""
    limits = streams(8)
    together = simulate(limits, [[(20, 100)]] * 8, adapters=[BASE, SETS[1]] * 4)
    half = simulate(limits, [[(20, 100)]] * 4)
    assert together.seconds < 2.1 * half.seconds
    assert max(together.gaps) < 3 * max(half.gaps)


def test_sets_are_told_apart_by_ids_and_scales() -> None:
    assert dataclasses.replace(SETS[1], names=("other",), mark="other") == SETS[1] != SETS[2]
