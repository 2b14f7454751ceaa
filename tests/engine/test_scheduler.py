"""The scheduler and the worker on a fake context: random arrivals, cancels, preemptions and shared prefixes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from locallab.engine import scheduler
from locallab.engine.llama import NO_ROOM
from locallab.engine.request import TokenEvent
from locallab.errors import EngineFailure
from tests.support.fake_llama import FakeGuide, answer, guided_answer
from tests.support.worker_rig import Rig

BASES = [[1, 2, 3, 4] * 12, [5, 6, 7] * 10, [1, 2, 3, 4] * 4 + [9] * 20]
prompts = st.builds(
    lambda base, cut, tail: base[:cut] + tail,
    st.sampled_from(BASES),
    st.integers(0, 48),
    st.lists(st.integers(1, 3), min_size=1, max_size=12),
)


class Traffic(RuleBasedStateMachine):
    """Whatever arrives and leaves: each request gets the tokens it would get alone, nothing leaks, none starves."""

    @initialize(
        lookahead=st.sampled_from([1, 128]),
        cells=st.sampled_from([96, 128, 256]),
        parallel=st.integers(1, 8),
        extra=st.integers(2, 6),
        cache_cells=st.sampled_from([0, 32, 200]),
        host=st.sampled_from([0, 200, 4000]),
        rewind=st.sampled_from([None, 0, 40]),
        chunk=st.sampled_from([1, 16, 64]),
        tile=st.sampled_from([0, 4, 32]),
    )
    def begin(self, lookahead, cells, parallel, extra, cache_cells, host, rewind, chunk, tile):
        scheduler.LOOKAHEAD = lookahead
        self.rig = Rig(
            cells=cells,
            parallel=parallel,
            slots=parallel + extra,
            cache_cells=cache_cells,
            host_bytes=host,
            rewind_limit=rewind,
            chunk=chunk,
            tile=tile,
        )
        self.rig.context.can_rewind = rewind != 0
        self.wanted: dict[int, int] = {}
        self.answers: dict[int, Callable[[Sequence[int], int], list[int]]] = {}
        self.cancelled: set[int] = set()
        self.telling: dict[int, bool] = {}

    @rule(
        prompt=prompts,
        max_tokens=st.integers(0, 30),
        guided=st.booleans(),
        urgent=st.booleans(),
        tells=st.sampled_from([{}, {}, {"logprobs": 0}, {"logprobs": 2, "prompt_logprobs": True}]),
    )
    def arrive(self, prompt, max_tokens, guided, urgent, tells):
        guide = FakeGuide(prompt) if guided else None
        id = self.rig.submit(prompt, max_tokens, guide=guide, urgent=urgent, **tells)
        if tells:
            self.telling[id] = "prompt_logprobs" in tells
        self.wanted[id] = max_tokens
        self.answers[id] = guided_answer if guided else answer

    @precondition(lambda self: self.rig.worker._sequences)
    @rule(data=st.data())
    def cancel(self, data):
        id = data.draw(st.sampled_from(sorted(self.rig.worker._sequences)))
        self.rig.cancel(id)
        self.cancelled.add(id)

    @rule(steps=st.integers(1, 12))
    def step(self, steps):
        for _ in range(steps):
            self.rig.step()

    @invariant()
    def consistent(self):
        if hasattr(self, "rig"):
            self.rig.check()

    def teardown(self):
        if not hasattr(self, "rig"):
            return
        self.finish()
        scheduler.LOOKAHEAD = 128

    def finish(self):
        self.rig.drain(steps=4000)
        assert self.rig.ended == len(self.wanted)
        for id, max_tokens in self.wanted.items():
            prompt = self.rig.prompts[id]
            expected = self.answers[id](prompt, min(max_tokens, self.rig.scheduler.limits.cells - len(prompt)))
            got = self.rig.tokens(id)
            assert [e.finish_reason for e in self.rig.events[id]].count(None) == len(self.rig.events[id]) - 1
            if id in self.cancelled and self.rig.last(id).finish_reason == "cancelled":
                assert got == expected[: len(got)]
            else:
                assert got == expected
                assert self.rig.last(id).finish_reason == "length"
            assert told(self.rig.events[id]) == (got if id in self.telling else [])
            if self.rig.last(id).finish_reason != "cancelled":
                assert scored(self.rig.events[id]) == (prompt[1:] if self.telling.get(id) else [])
            usage = self.rig.last(id).usage
            assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), len(got))
            assert 0 <= usage.cached_tokens < len(prompt)


def told(events: Sequence[TokenEvent]) -> list[int]:
    return [each.token for event in events for each in event.logprobs]


def scored(events: Sequence[TokenEvent]) -> list[int]:
    return [each.token for event in events for each in event.prompt_logprobs]


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_decoding_goes_on_while_a_long_prompt_arrives():
    rig = Rig(cells=512, chunk=16)
    reader = rig.submit([1, 2, 3], 40)
    rig.step()
    rig.submit([7] * 300, 1)
    for n in range(2, 15):
        rig.step()
        rig.worker._hand_out()
        assert len(rig.tokens(reader)) == n, "a step passed without a token for the one who reads"
    rig.drain()


def test_the_chunk_follows_the_measured_cost():
    rig = Rig(cells=512, chunk=16)
    rig.submit([1, 2, 3], 40)
    rig.step()
    rig.submit([7] * 200, 1)
    plan = rig.scheduler.plan()
    assert [c.count for c in plan.batches[0]] == [1, 16]


def test_answers_and_prompts_share_no_tile():
    rig = Rig(cells=512, parallel=9, chunk=64, tile=8)
    for i in range(8):
        rig.submit([i + 1], 9)
    rig.step()
    rig.submit([60] * 50, 1)
    plan = rig.scheduler.plan()
    assert [[c.count for c in batch] for batch in plan.batches] == [[1] * 7, [1], [50]]


def test_a_chunk_is_whole_tiles_where_the_time_allows():
    rig = Rig(cells=512, chunk=20, tile=8)
    rig.submit([1, 2, 3], 9)
    rig.step()
    rig.submit([7] * 200, 1)
    assert [c.count for c in rig.scheduler.plan().batches[-1]] == [24]


@pytest.mark.parametrize(("cost", "counts"), [(0.05, [64]), (0.2, [16])], ids=["a long context", "a large model"])
def test_a_chunk_is_less_than_a_tile_only_where_one_takes_seconds(cost, counts):
    """At 0.05 s a token a tile takes 3.2 s, sixteen times as long as a step should, and less than one would take no less."""
    rig = Rig(cells=4096, batch=512, tile=64)
    rig.scheduler.limits = dataclasses.replace(rig.scheduler.limits, step_seconds=0.2)
    rig.scheduler.costs._prompt = {7: cost}
    rig.submit([7] * 600, 1)
    assert [c.count for c in rig.scheduler.plan().batches[-1]] == counts


def test_a_chunk_leaves_no_end_smaller_than_a_tile():
    rig = Rig(cells=512, chunk=20, tile=8)
    rig.submit([1, 2, 3], 9)
    rig.step()
    rig.submit([60] * 31, 1)
    assert [c.count for c in rig.scheduler.plan().batches[-1]] == [31]


def test_a_short_prompt_does_not_wait_for_the_whole_of_a_long_one():
    rig = Rig(cells=512, batch=64, chunk=32)
    rig.submit([7] * 400, 4)
    short = rig.submit([1, 2, 3], 1)
    for _ in range(3):
        rig.step()
    rig.worker._hand_out()
    assert rig.last(short).finish_reason == "length"
    rig.drain()


def test_64_sequences_are_computed_at_once_and_one_may_use_the_whole_pool():
    rig = Rig(cells=2048, parallel=64, slots=128, batch=256, chunk=64)
    ids = [rig.submit([i % 60 + 1, i // 60 + 1, 5], 20) for i in range(64)]
    while any(not rig.tokens(id) for id in ids):
        rig.step()
        rig.worker._hand_out()
    assert len(rig.scheduler.running) == 64
    rig.drain()
    alone = rig.submit([9] * 2000, 47)
    rig.drain()
    assert rig.tokens(alone) == answer([9] * 2000, 47)


def test_requests_that_arrive_together_compute_their_common_prefix_once():
    rig = Rig(cells=1024, parallel=8)
    prefix = [1, 2, 3, 4, 5] * 40
    ids = [rig.submit([*prefix, 10 + i], 4) for i in range(8)]
    rig.drain()
    assert rig.context.decoded == len(prefix) + 8 + 8 * 3
    assert sorted(rig.last(id).usage.cached_tokens for id in ids) == [0] + [len(prefix)] * 7
    assert [rig.tokens(id) for id in ids] == [answer([*prefix, 10 + i], 4) for i in range(8)]


def test_a_finished_answer_is_the_next_turns_prefix():
    rig = Rig()
    first = rig.submit([1, 2, 3], 6)
    rig.drain()
    turn = [1, 2, 3, *rig.tokens(first)[:-1], 9, 9]
    second = rig.submit(turn, 1)
    rig.drain()
    assert rig.last(second).usage.cached_tokens == len(turn) - 2


def test_a_model_that_cannot_rewind_shares_only_whole_sequences():
    rig = Rig(rewind_limit=0)
    first = rig.submit([1, 2, 3, 4], 4)
    rig.drain()
    whole = [1, 2, 3, 4, *rig.tokens(first)[:-1]]
    part = rig.submit([1, 2, 3, 4, 8, 8], 1)
    more = rig.submit([*whole, 8], 1)
    rig.drain()
    assert rig.last(part).usage.cached_tokens == 0
    assert rig.last(more).usage.cached_tokens == len(whole)


def test_a_full_pool_puts_back_the_youngest(monkeypatch):
    monkeypatch.setattr("locallab.engine.scheduler.LOOKAHEAD", 1)
    rig = Rig(cells=64, parallel=4, cache_cells=0)
    ids = [rig.submit([i + 1] * 8, 40) for i in range(4)]
    rig.drain()
    assert rig.scheduler.preemptions > 0
    assert [rig.tokens(id) for id in ids] == [answer([i + 1] * 8, 40) for i in range(4)]


def test_the_oldest_is_never_put_back(monkeypatch):
    monkeypatch.setattr("locallab.engine.scheduler.LOOKAHEAD", 1)
    rig = Rig(cells=64, parallel=4, cache_cells=0)
    ids = [rig.submit([i + 1] * 8, 40) for i in range(4)]
    while not rig.last_or_none(ids[0]):
        rig.step()
        running = [s.id for s in rig.scheduler.running]
        assert not running or ids[0] in running or rig.last_or_none(ids[0])
        rig.worker._hand_out()
    rig.drain()


def test_what_does_not_fit_beside_the_others_is_not_begun():
    rig = Rig(cells=64, parallel=4, cache_cells=0)
    ids = [rig.submit([i + 1] * 40, 4) for i in range(3)]
    rig.drain()
    assert rig.scheduler.preemptions == 0
    assert [rig.tokens(id) for id in ids] == [answer([i + 1] * 40, 4) for i in range(3)]


def test_a_cancelled_request_frees_its_room_within_a_step():
    rig = Rig(cells=128, cache_cells=0)
    id = rig.submit([1] * 100, 4)
    rig.step()
    assert rig.context.used > 0
    rig.cancel(id)
    rig.submit([2, 3], 1)
    rig.step()
    assert rig.context.used <= 3
    assert rig.last(id).finish_reason == "cancelled"


def test_what_stays_resident_is_bounded():
    rig = Rig(cells=512, cache_cells=50)
    for i in range(8):
        rig.submit([i + 1] * 30, 2)
        rig.drain()
    rig.submit([60], 1)
    rig.step()
    assert rig.scheduler.cache.cold_cells <= 50


def test_cold_prefixes_move_to_host_ram_and_come_back():
    rig = Rig(cells=512, cache_cells=0, host_bytes=10_000)
    prompt = [1, 2, 3, 4] * 30
    rig.submit(prompt, 2)
    rig.drain()
    rig.submit([9, 9], 1)
    rig.drain()
    assert rig.context.used < 100 and len(rig.scheduler.host) == 1
    again = rig.submit([*prompt, 5], 3)
    rig.drain()
    assert rig.last(again).usage.cached_tokens == len(prompt)
    assert rig.tokens(again) == answer([*prompt, 5], 3)


def test_the_next_turn_finds_what_was_just_finished_however_small_the_bound():
    rig = Rig(cells=512, cache_cells=0, host_bytes=10_000)
    prompt = [1, 2, 3, 4] * 30
    rig.submit(prompt, 2)
    rig.drain()
    again = rig.submit([*prompt, 5], 3)
    rig.drain()
    assert rig.last(again).usage.cached_tokens == len(prompt)


def test_a_state_that_cannot_be_put_back_is_computed_again():
    rig = Rig(cells=512, cache_cells=0, host_bytes=10_000)
    prompt = [1, 2, 3, 4] * 30
    rig.submit(prompt, 2)
    rig.drain()
    rig.submit([9, 9], 1)
    rig.drain()
    rig.context.restore = lambda *_: False  # type: ignore[method-assign]
    again = rig.submit([*prompt, 5], 3)
    rig.drain()
    assert rig.last(again).usage.cached_tokens == 0
    assert rig.tokens(again) == answer([*prompt, 5], 3)
    assert len(rig.scheduler.host) == 0


def without_room(rig: Rig, times: int) -> None:
    """Let llama.cpp find no room for the next batches, though by count there is some."""
    decode, left = rig.context.decode, iter(range(times))
    rig.context.decode = lambda batch: decode(batch) if next(left, None) is None else NO_ROOM  # type: ignore[method-assign]


def test_without_room_a_finished_prefix_goes_first():
    rig = Rig()
    rig.submit([1, 2, 3], 4)
    rig.drain()
    assert rig.scheduler.cache.cold_cells
    id = rig.submit([7, 8, 9], 4)
    without_room(rig, 1)
    rig.drain()
    assert rig.tokens(id) == answer([7, 8, 9], 4)
    assert rig.scheduler.preemptions == 0


def test_without_room_the_youngest_is_preempted_and_computed_again():
    rig = Rig(cache_cells=0)
    ids = [rig.submit([i, 2, 3], 6) for i in range(3)]
    rig.step()
    without_room(rig, 2)
    rig.drain()
    assert [rig.tokens(id) for id in ids] == [answer([i, 2, 3], 6) for i in range(3)]
    assert rig.scheduler.preemptions == 2


def test_without_room_for_a_single_sequence_it_fails():
    rig = Rig(cache_cells=0)
    rig.submit([1, 2, 3], 4)
    without_room(rig, 1)
    with pytest.raises(EngineFailure, match="no KV room for a single sequence"):
        rig.worker._step()


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on(caplog):
    rig = Rig()
    lost = rig.submit([1, 2, 3], 4)
    decode = rig.context.decode
    rig.context.decode = lambda _: (_ for _ in ()).throw(RuntimeError("boom"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        rig.worker._step()
    rig.worker._fail_all(EngineFailure("boom"))
    assert rig.last(lost).finish_reason == "error" and isinstance(rig.last(lost).error, EngineFailure)
    rig.context.decode = decode  # type: ignore[method-assign]
    fine = rig.submit([1, 2, 3], 4)
    rig.drain()
    assert rig.tokens(fine) == answer([1, 2, 3], 4)


def test_stop_strings_end_a_request_and_are_not_shown():
    rig = Rig()
    tokens = answer([1, 2, 3], 5)
    id = rig.submit([1, 2, 3], 10, stop=(f"<{tokens[3]}>",))
    rig.drain()
    assert "".join(e.text for e in rig.events[id]) == "".join(f"<{t}>" for t in tokens[:3])
    assert rig.last(id).finish_reason == "stop"


def test_stop_token_ids_end_a_request():
    rig = Rig()
    tokens = answer([1, 2, 3], 5)
    id = rig.submit([1, 2, 3], 10, stop_token_ids=(tokens[2],))
    rig.drain()
    assert rig.last(id).finish_reason == "stop"
    assert rig.tokens(id) == tokens[: tokens.index(tokens[2]) + 1]


def test_an_urgent_request_goes_ahead_of_those_that_wait():
    rig = Rig(cells=2048, parallel=2, slots=4, chunk=32)
    long = [rig.submit([i + 1] * 200, 4) for i in range(6)]
    rig.step()
    urgent = rig.submit([50, 51, 52], 2, urgent=True)
    steps = 0
    while not rig.last_or_none(urgent):
        rig.step()
        rig.worker._hand_out()
        steps += 1
    assert sum(bool(rig.last_or_none(id)) for id in long) <= 1 and steps < 20
    rig.drain()


def test_an_urgent_prompt_is_computed_in_the_step_that_lets_it_in():
    rig = Rig(cells=1024, chunk=16)
    for i in range(4):
        rig.submit([i + 1] * 100, 1)
    rig.step()
    rig.submit([50, 51, 52], 2, urgent=True)
    rig.step()
    rig.worker._hand_out()
    [urgent] = [s for s in rig.scheduler.running if s.urgent]
    assert urgent.n_answer == 1


@given(
    others=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    urgent=st.integers(1, 60),
    flood=st.integers(1, 4),
    parallel=st.integers(1, 6),
    tile=st.sampled_from([0, 4, 16, 32]),
    chunk=st.sampled_from([1, 8, 40]),
)
@settings(max_examples=60, deadline=None)
def test_urgent_requests_starve_nobody(others, urgent, flood, parallel, tile, chunk):
    """However many come, who waits gets in, and who is in gets half of what prompts are given."""
    rig = Rig(cells=512, parallel=parallel, slots=parallel + 3, chunk=chunk, tile=tile)
    waiting = [rig.submit([i + 1] * length, 3) for i, length in enumerate(others)]
    for step in range(6000):
        for i in range(flood if len(rig.scheduler.waiting) < 20 else 0):
            rig.submit([40 + (step + i) % 20, *[7] * urgent], 2, urgent=True)
        rig.step()
        rig.worker._hand_out()
        if all(rig.last_or_none(id) for id in waiting):
            break
    assert all(rig.last_or_none(id) for id in waiting)
    for id, length in zip(waiting, others, strict=True):
        index = waiting.index(id)
        assert rig.tokens(id) == answer([index + 1] * length, 3)


@given(
    long=st.integers(100, 400),
    urgent=st.integers(1, 100),
    chunk=st.sampled_from([8, 16, 64]),
    tile=st.sampled_from([0, 16, 32]),
)
@settings(max_examples=60, deadline=None)
def test_others_are_given_as_much_as_urgent_ones(long, urgent, chunk, tile):
    rig = Rig(cells=4096, batch=64, parallel=8, slots=12, chunk=chunk, tile=tile)
    rig.submit([1] * long, 2)
    ahead, most = 0, 0
    for step in range(1000):
        while sum(s.urgent for s in rig.scheduler.running + rig.scheduler.waiting) < 4:
            rig.submit([40 + step % 20, *range(2, 2 + min(urgent, 30)), *[5] * max(0, urgent - 30)], 1, urgent=True)
        plan = rig.scheduler.plan()
        chunks = [chunk for batch in plan.batches for chunk in batch]
        if not any(not s.urgent and s.computed < s.n_prompt - 1 for s in rig.scheduler.running):
            break
        if any(s.urgent for s in rig.scheduler.running):
            ahead = max(0, ahead + sum(c.count if c.sequence.urgent else -c.count for c in chunks))
        most = max(most, ahead)
        rig.scheduler.plan = lambda plan=plan: plan  # type: ignore[method-assign]
        rig.step()
        del rig.scheduler.plan
    else:
        raise AssertionError("the long prompt starves")
    assert most <= 2 * 64
