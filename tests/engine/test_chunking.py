"""What plans do to clients, by the clock of a machine whose costs are known."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from locallab.engine.answer import Answer
from locallab.engine.chunking import Chunking
from locallab.engine.costs import StepCosts
from locallab.engine.fairness import Shares
from locallab.engine.limits import Limits
from locallab.engine.request import SamplingParams
from locallab.engine.sequence import Sequence
from locallab.engine.step_plan import Chunk
from tests.support.fake_llama import FakeModel
from tests.support.simulation import Machine, Result, quantile, simulate, streams
from tests.support.worker_rig import Rig

WORKLOADS = {  # of each client its requests: tokens of prompt and answer
    "short, 8": [[(60, 64)] * 3] * 8,
    "short, 32": [[(60, 64)] * 3] * 32,
    "prompt, 8": [[(380, 64)] * 3] * 8,
    "prompt, 32": [[(380, 64)] * 3] * 32,
    "long": [[(60, 256)]] * 4 + [[(2100, 16)] * 3],
}


@functools.cache
def played(name: str, step_seconds: float) -> Result:
    """Return what clients see: with steps of 200 ms, or of any length, whoever reads."""
    clients = WORKLOADS[name]
    return simulate(streams(max(8, len(clients)), step_seconds), clients)


@pytest.mark.parametrize("name", WORKLOADS)
def test_readers_cost_little_throughput(name: str) -> None:
    """Against chunks as long as is cheapest; a tile at 2,000 tokens of context costs 1.4 times as much a token as eight."""
    assert played(name, 0.2).rate > (0.93 if name == "long" else 0.98) * played(name, 1e6).rate


@pytest.mark.parametrize(("name", "share"), [("short, 8", 0.6), ("short, 32", 0.7), ("prompt, 8", 0.45), ("long", 0.45)])
def test_nobody_waits_long_for_a_token(name: str, share: float) -> None:
    assert quantile(played(name, 0.2).gaps, 0.99) < share * quantile(played(name, 1e6).gaps, 0.99)


def test_prompts_do_not_queue_behind_many_readers() -> None:
    """Who reads and who waits share the same machine: were the steps of 32 readers kept short, prompts would wait for half of
    them to end."""
    cycle = 32 * 64 / played("prompt, 32", 0.2).rate
    assert quantile(played("prompt, 32", 0.2).first, 0.5) < 0.15 * cycle


def test_a_prompt_alone_has_the_largest_chunks() -> None:
    result = simulate(streams(8), [[(6000, 16)]])
    chunks = [count for step in result.chunks for count in step]
    assert set(chunks[:-2]) == {512}


def test_costs_learn_from_what_a_batch_has_to_attend_to() -> None:
    rig = Rig(layout="streams", parallel=2, cells=512, chunk=64, tile=8)
    seen: list[tuple[int, int, float, float]] = []
    rig.scheduler.costs.observe = lambda n_decode, n_prompt, seconds, cells, work: seen.append(
        (n_decode, n_prompt, cells, work)
    )  # type: ignore[method-assign]
    rig.submit([5] * 40, 2)
    rig.drain()
    assert seen == [(0, 40, 0, 40 * 20), (1, 0, 40, 0)]


LIMITS = Limits(cells=8192, batch=2048, parallel=8, slots=16, cache_cells=0, step_seconds=0.2)


def sequence(id: int, n_prompt: int, computed: int, pace: float = 0.0) -> Sequence:
    answer = Answer(SamplingParams(), FakeModel())  # type: ignore[arg-type]
    return Sequence(id, [1] * n_prompt, n_prompt, 8000, answer, lambda event: None, computed=computed, pace=pace)


def planned(paces: list[float], limits: Limits = LIMITS, prompts: int = 1) -> list[int]:
    """Return the lengths of the chunks of prompts of 3,000 tokens beside readers with these paces."""
    costs = StepCosts()
    costs._decode.coefficients, costs._prompt.coefficients = (0.004, 0.0001, 0.0), (0.0005, 0.0001, 0.0)
    answers = [Chunk.of(sequence(i, 10, 9, pace), 1) for i, pace in enumerate(paces)]
    waiting = [sequence(100 + i, 3000, 0) for i in range(prompts)]
    return [chunk.count for chunk in Chunking(limits, costs, Shares()).prompts(waiting, answers, 8000, 64)]


def test_the_least_patient_reader_decides() -> None:
    """A step of 512 tokens takes 56 ms, one of 256 takes 30 ms."""
    assert planned([0.05, 0.05]) == [512]
    assert planned([0.05, 0.006]) == [256]


def test_no_reader_is_taken_for_more_patient_than_step_ms_says() -> None:
    assert planned([9.0], dataclasses.replace(LIMITS, step_seconds=0.03)) == [256]


def test_one_who_has_only_begun_is_as_patient_as_step_ms_says() -> None:
    assert planned([0.0], dataclasses.replace(LIMITS, step_seconds=0.03)) == [256]


def test_who_has_a_first_token_in_this_step_reads() -> None:
    """On SmolLM2's machine a prompt of 60 tokens takes 181 ms: the third one waits for the next step."""
    costs = StepCosts()
    costs._decode.coefficients, costs._prompt.coefficients = Machine().decode, Machine().prompt
    for length, expected in ((60, [60, 60]), (20, [20, 20, 20])):
        waiting = [sequence(i, length, 0) for i in range(3)]
        planned = Chunking(streams(8), costs, Shares()).prompts(waiting, [], 8000, 64)
        assert [chunk.count for chunk in planned] == expected


def test_further_prompts_get_what_time_is_left() -> None:
    assert planned([0.05], prompts=2) == [512]
    assert planned([], prompts=2) == [512]
