"""Histograms and totals count exactly."""

from __future__ import annotations

import itertools
import time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.answer import Answer
from locallab.engine.request import CacheUse, MissReason, SamplingParams, Tier
from locallab.engine.sequence import Sequence
from locallab.engine.totals import FIRST_TOKEN_SECONDS, TOKEN_SECONDS, Histogram, Totals
from tests.support.fake_llama import FakeModel
from tests.support.worker_rig import Rig

seconds = st.floats(0, 1000) | st.sampled_from(TOKEN_SECONDS)


@given(st.lists(seconds))
def test_a_bucket_holds_what_is_at_most_its_bound_and_above_the_one_before(values: list[float]) -> None:
    histogram = Histogram(TOKEN_SECONDS)
    for value in values:
        histogram.observe(value)
    lows = (-1.0, *TOKEN_SECONDS)
    highs = (*TOKEN_SECONDS, float("inf"))
    assert histogram.counts == [sum(low < v <= high for v in values) for low, high in zip(lows, highs, strict=True)]
    assert histogram.sum == sum(values)


def test_bounds_rise() -> None:
    for bounds in (TOKEN_SECONDS, FIRST_TOKEN_SECONDS):
        assert list(bounds) == sorted(set(bounds))


def test_every_token_and_step_is_counted_once() -> None:
    rig = Rig()
    answers = {rig.submit(range(1, 20), max_tokens=5): 5, rig.submit(range(30, 40), max_tokens=1): 1}
    steps = rig.drain()
    totals = rig.worker.totals
    assert totals.completion_tokens == sum(answers.values()) and totals.prompt_tokens == 29
    assert sum(totals.time_to_first_token.counts) == len(answers)
    assert sum(totals.inter_token.counts) == totals.completion_tokens - len(answers)
    assert sum(totals.step.counts) == totals.steps == steps
    assert totals.inter_token.sum > 0 and totals.step.sum > 0


def test_figures_for_other_threads_count_nothing_that_the_engine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.ask(range(1, 20))
    rig.submit(range(30, 40), max_tokens=5)
    rig.step()
    cache = rig.scheduler.cache
    monkeypatch.setattr(cache, "_count_cold", lambda: pytest.fail("another thread counts what the engine may be changing"))
    cache._cold = None
    stats = rig.worker.stats()
    assert 0 < stats.cached < stats.kv_used
    monkeypatch.undo()
    rig.drain()
    stats = rig.worker.stats()
    assert 0 < stats.cached == stats.kv_used


def test_the_parts_of_a_step_make_up_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    looks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(looks)))  # no other process takes time from a step
    rig.submit(range(1, 20), max_tokens=5)
    rig.drain()
    monkeypatch.undo()
    totals = rig.worker.totals
    assert all(seconds > 0 for seconds in totals.phases.values())
    assert sum(totals.phases.values()) == pytest.approx(totals.step.sum, rel=0.5)
    assert sum(totals.phases.values()) <= totals.step.sum


def test_what_never_answers_has_no_first_token() -> None:
    rig = Rig()
    rig.cancel(rig.submit(range(1, 200)))
    rig.step()
    assert sum(rig.worker.totals.time_to_first_token.counts) == rig.worker.totals.prompt_tokens == 0


def test_a_preempted_request_has_one_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locallab.engine.scheduler.LOOKAHEAD", 1)
    rig = Rig(cells=64, parallel=4, cache_cells=0)
    for first in (1, 2, 3):
        rig.submit([first] * 8, max_tokens=40)
    rig.drain()
    totals = rig.worker.totals
    assert totals.preemptions == rig.scheduler.preemptions > 0
    assert sum(totals.time_to_first_token.counts) == 3 and totals.prompt_tokens == 24
    assert sum(totals.inter_token.counts) == totals.completion_tokens - 3


def test_prompts_are_counted_by_what_the_cache_had() -> None:
    totals, other = Totals(), Totals()
    totals.prompt(30, CacheUse(0, 30, "none", "first time", 0))
    totals.prompt(30, CacheUse(20, 30, "host", "diverged", 20))
    totals.prompt(40, CacheUse(4, 40, "resident", "diverged", 4))
    totals.prompt(50, None)
    other.prompt(10, CacheUse(9, 10, "host", "end", 9))
    assert list(totals.cache_requests) == list(get_args(MissReason)) and set(totals.hit_tokens) == {*get_args(Tier)} - {"none"}
    totals.add(other)
    assert (totals.prompt_tokens, totals.cached_tokens) == (160, 33)
    assert totals.cache_requests == {"end": 1, "first time": 1, "diverged": 2, "evicted": 0, "no snapshot": 0}
    assert totals.missed_tokens == {"end": 1, "first time": 30, "diverged": 46, "evicted": 0, "no snapshot": 0}
    assert totals.hit_tokens == {"resident": 4, "host": 29, "disk": 0}
    assert other.hit_tokens["host"] == 9


def test_the_pace_of_an_answer_is_that_of_its_last_tokens() -> None:
    totals, sequence = Totals(), made()
    totals.tokens(sequence, 1, 10.0)
    assert sequence.pace == 0.0, "one token has no pace"
    totals.tokens(sequence, 1, 10.5)
    assert sequence.pace == 0.5
    totals.tokens(sequence, 4, 10.9)
    assert 0.1 < sequence.pace < 0.5, "four tokens at once count as four"
    for i in range(30):
        totals.tokens(sequence, 1, 11.0 + i / 10)
    assert sequence.pace == pytest.approx(0.1, rel=0.01)


def made() -> Sequence:
    answer = Answer(SamplingParams(), FakeModel())  # type: ignore[arg-type]
    return Sequence(0, [1], 1, 100, answer, lambda event: None)
