"""The scheduler and the worker on a fake context: random arrivals, cancels, preemptions and shared prefixes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from locallab.engine import saving, scheduler
from locallab.engine.adapters import BASE, chosen
from locallab.engine.caller import LOCAL, Caller
from locallab.engine.media.runs import Prompt, Run, ids, joined
from locallab.engine.prefix_tree import common_length
from locallab.engine.request import TokenEvent
from locallab.errors import EngineFailure
from locallab.settings import Layout
from tests.support.fake_llama import ADAPTERS, FakeGuide, Kind, answer, guided_answer, next_token, poor_guess
from tests.support.worker_rig import Rig

BASES = [[1, 2, 3, 4] * 30, [5, 6, 7] * 10, [1, 2, 3, 4] * 4 + [9] * 20]
prompts = st.builds(
    lambda base, cut, tail: base[:cut] + tail,
    st.sampled_from(BASES),
    st.integers(0, 120),
    st.lists(st.integers(1, 3), min_size=1, max_size=12),
)
SETS = [BASE, *(chosen(ADAPTERS, scales) for scales in (((0, 1.0),), ((0, 0.5),), ((0, 1.0), (1, 1.0))))]
sets = st.sampled_from([*[BASE] * 4, *SETS])
callers = st.sampled_from([LOCAL, LOCAL, Caller(id="a"), Caller(id="b", weight=2, owner="b"), Caller(id="c", owner="c")])
CONSTANTS = {"LOOKAHEAD": scheduler, "WORTH_SAVING": saving, "TURN": scheduler}
KINDS: tuple[Kind, ...] = ("attention", "window", "recurrent")
LAYOUTS: tuple[Layout, ...] = ("unified", "streams")
AMPLE = 1 << 20
each_kind = pytest.mark.parametrize("kind", KINDS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


class Traffic(RuleBasedStateMachine):
    """Whatever arrives, leaves and fails: each request gets the tokens it would get alone, is computed but for what was cached,
    nothing leaks, none starves."""

    @initialize(
        layout=st.sampled_from(LAYOUTS),
        kind=st.sampled_from(KINDS),
        host=st.sampled_from([0, 400, AMPLE, AMPLE]),
        constants=st.tuples(st.sampled_from([1, 128]), st.sampled_from([8, 64]), st.sampled_from([6, 128])),
        context=st.sampled_from([160, 256]),
        parallel=st.integers(1, 6),
        extra=st.integers(2, 6),
        cache_cells=st.sampled_from([0, 32, 200]),
        every=st.sampled_from([0, 10, 32]),
        chunk=st.sampled_from([1, 16, 64]),
        tile=st.sampled_from([0, 4, 32]),
        even=st.booleans(),
        costs=st.tuples(st.sampled_from([0.0, 0.01]), st.sampled_from([0.0, 0.0003, 0.01])),
        public=st.sampled_from([(), (BASES[0][:30],), (BASES[0][:90], BASES[1][:9], BASES[2])]),
        draft=st.tuples(st.sampled_from([None, next_token, poor_guess]), st.integers(1, 6)),
        encode_steps=st.integers(1, 5),
    )
    def begin(
        self,
        layout,
        kind,
        host,
        constants,
        context,
        parallel,
        extra,
        cache_cells,
        every,
        chunk,
        tile,
        even,
        costs,
        public,
        draft,
        encode_steps,
    ):
        self.before = {name: getattr(module, name) for name, module in CONSTANTS.items()}
        for name, value in zip(CONSTANTS, constants, strict=True):
            setattr(CONSTANTS[name], name, value)
        self.rig = Rig(
            layout=layout,
            kind=kind,
            cells=context * (parallel if layout == "streams" else 1),
            parallel=parallel,
            slots=parallel + extra,
            cache_cells=cache_cells,
            host_bytes=host,
            snapshot_every=every,
            chunk=chunk,
            tile=tile,
            even=even,
            step_cost=costs[0],
            move_cost=costs[1],
            guesses=draft[0],
            draft_streams=min(parallel, draft[1]),
            encode_steps=encode_steps,
        )
        self.rig.cache.public = public
        self.wanted: dict[int, int] = {}
        self.guided: set[int] = set()
        self.cancelled: set[int] = set()
        self.telling: dict[int, bool] = {}

    @rule(
        prompt=prompts,
        max_tokens=st.integers(0, 30),
        guided=st.booleans(),
        urgent=st.booleans(),
        tells=st.sampled_from([{}, {}, {"logprobs": 0}, {"logprobs": 2, "prompt_logprobs": True}]),
        boundary=st.integers(0, 130),
        caller=callers,
        adapters=sets,
    )
    def arrive(self, prompt, max_tokens, guided, urgent, tells, boundary, caller, adapters):
        guide = FakeGuide(prompt) if guided else None
        who = {"caller": caller, "adapters": adapters}
        id = self.rig.submit(prompt, max_tokens, guide=guide, urgent=urgent, boundaries=(boundary,), **who, **tells)
        if tells:
            self.telling[id] = "prompt_logprobs" in tells
        if guided:
            self.guided.add(id)
        self.wanted[id] = max_tokens

    @rule(prompt=prompts, count=st.integers(2, 4), urgent=st.booleans(), caller=callers, adapters=sets)
    def arrive_together(self, prompt, count, urgent, caller, adapters):
        for i in range(count):
            id = self.rig.submit(prompt, 5, urgent=urgent and i == count - 1, caller=caller, adapters=adapters)
            self.wanted[id] = 5

    @rule(
        texts=st.lists(prompts.map(lambda prompt: prompt[:20]), min_size=1, max_size=3),
        picture=st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(1, 30), st.booleans()),
        max_tokens=st.integers(0, 30),
        count=st.integers(1, 3),
        caller=callers,
        adapters=sets,
    )
    def show(self, texts, picture, max_tokens, count, caller, adapters):
        """Ask several times about the same picture."""
        key, size, whole = picture
        run = Run(0, size, size, key + bytes([size, whole]), "images[0]", whole)
        shown = [part for text in texts for part in (text, Prompt(ids(run.key, size), [run]))]
        for i in range(count):
            id = self.rig.submit(joined([*shown, [i + 1]]), max_tokens, caller=caller, adapters=adapters)
            self.wanted[id] = max_tokens

    @precondition(lambda self: self.wanted)
    @rule(
        data=st.data(),
        kept=st.integers(0, 40),
        tail=st.lists(st.integers(1, 3), min_size=1, max_size=12),
        count=st.integers(1, 3),
        caller=callers,
        adapters=sets,
    )
    def go_on(self, data, kept, tail, count, caller, adapters):
        """Go on with an answer as it is so far, or edited, perhaps in several ways at once."""
        id = data.draw(st.sampled_from(sorted(self.wanted)))
        prompt = joined([self.rig.asked[id], self.rig.tokens(id)[:kept], tail])
        for i in range(count if len(prompt) < self.rig.context_length - 10 else 0):
            self.wanted[self.rig.submit(joined([prompt, [i + 1]]), 8, caller=caller, adapters=adapters)] = 8

    @precondition(lambda self: self.rig.worker._sequences)
    @rule(data=st.data())
    def cancel(self, data):
        id = data.draw(st.sampled_from(sorted(self.rig.worker._sequences)))
        self.rig.cancel(id)
        self.cancelled.add(id)

    @rule(call=st.sampled_from(["save", "restore", "restore", "decode", "crash"]), times=st.integers(1, 3))
    def fail(self, call, times):
        self.rig.context.fails[call] += times

    @precondition(lambda self: not self.rig.worker._sequences)
    @rule()
    def rest(self):
        self.rig.rest()

    @rule(steps=st.integers(1, 12))
    def step(self, steps):
        for _ in range(steps):
            self.rig.step()

    @invariant()
    def consistent(self):
        if hasattr(self, "rig"):
            self.rig.check()

    def teardown(self):
        if hasattr(self, "rig"):
            try:
                self.finish()
            finally:
                for name, value in self.before.items():
                    setattr(CONSTANTS[name], name, value)

    def finish(self):
        self.rig.drain(steps=4000)
        assert self.rig.ended == len(self.wanted)
        for id, max_tokens in self.wanted.items():
            self.check_answer(id, max_tokens)
            self.check_computed(id)
            self.check_owner(id)
        if "decode" not in self.rig.context.fails:
            computed = sum(len(chunk) for chunks in self.rig.chunks.values() for chunk in chunks)
            assert self.rig.context.decoded == computed + self.rig.worker.totals.rejected_tokens

    def check_answer(self, id, max_tokens):
        prompt, got, last = self.rig.prompts[id], self.rig.tokens(id), self.rig.last(id)
        count = min(max_tokens, self.rig.context_length - len(prompt))
        expected = guided_answer(prompt, count) if id in self.guided else answer(prompt, count)
        assert [e.finish_reason for e in self.rig.events[id]].count(None) == len(self.rig.events[id]) - 1
        assert got == expected[: len(got)]
        assert last.finish_reason == "length" or id in self.cancelled or {"decode", "crash"} & set(self.rig.context.fails)
        if last.finish_reason == "length":
            assert len(got) == len(expected)
            assert scored(self.rig.events[id]) == (prompt[1:] if self.telling.get(id) else [])
        assert told(self.rig.events[id]) == (got if id in self.telling else [])
        read = last.usage.prompt_tokens
        assert read == len(prompt) if got or last.finish_reason == "length" else 0 <= read <= len(prompt)
        assert last.usage.completion_tokens == len(got)
        assert last.usage.accepted_tokens <= len(got)
        assert 0 <= last.usage.cached_tokens <= read and last.usage.cached_tokens < len(prompt)

    def check_owner(self, id):
        """Check that a request used no more than what is public and what its owner has asked or got with its adapters."""
        rig, prompt, mine = self.rig, self.rig.prompts[id], (self.rig.callers[id].owner, self.rig.adapters[id])
        own = [o for o in self.wanted if o != id and (rig.callers[o].owner, rig.adapters[o]) == mine]
        texts = [[*rig.prompts[other], *rig.tokens(other)] for other in own]
        assert rig.cached(id) <= max((common_length(prompt, text) for text in (*texts, *rig.cache.public)), default=0)

    def check_computed(self, id):
        """Check that a request was computed once, but for what was cached, and further only where it was put back."""
        chunks = self.rig.chunks.get(id, [])
        if not chunks or id in self.rig.put_back:
            return
        assert chunks[0].start == self.rig.cached(id)
        assert all(before.stop == after.start for before, after in itertools.pairwise(chunks))
        assert self.rig.last(id).finish_reason != "length" or chunks[-1].stop >= len(self.rig.prompts[id])


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


def test_log_probabilities_of_a_prompt_do_not_wait_for_streams_to_be_free():
    rig = Rig(layout="streams", parallel=1, outputs=64, chunk=64, cells=256)
    id = rig.submit([5] * 200, 1, logprobs=0, prompt_logprobs=True)
    assert rig.drain() <= 6
    assert len(rig.tokens(id)) == 1


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
    assert [c.count for c in rig.scheduler.plan().batches[-1]] == [16]


@pytest.mark.parametrize(("cost", "counts"), [(0.05, [64]), (0.2, [16])], ids=["a long context", "a large model"])
def test_a_chunk_is_less_than_a_tile_only_where_one_takes_seconds(cost, counts):
    """A tile takes 3.2 or 12.8 s, and while nobody reads a step may take 5."""
    rig = Rig(cells=4096, batch=512, tile=64)
    rig.scheduler._chunking.limits = dataclasses.replace(rig.scheduler.limits, step_seconds=0.2)
    rig.scheduler.costs._prompt.coefficients = (0.0, cost, 0.0)
    rig.submit([7] * 600, 1)
    assert [c.count for c in rig.scheduler.plan().batches[-1]] == counts


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


@each_kind
@each_layout
def test_requests_that_arrive_together_compute_their_common_prefix_once(layout: Layout, kind: Kind):
    rig = Rig(layout=layout, kind=kind, cells=4096, host_bytes=AMPLE)
    prefix = [1, 2, 3, 4, 5] * 40
    ids = [rig.submit([*prefix, 10 + i], 4) for i in range(8)]
    rig.drain()
    assert rig.context.decoded == len(prefix) + 8 + 8 * 3
    assert sorted(rig.cached(id) for id in ids) == [0] + [len(prefix)] * 7
    assert [rig.tokens(id) for id in ids] == [answer([*prefix, 10 + i], 4) for i in range(8)]


@each_kind
@each_layout
def test_equal_prompts_are_computed_once(layout: Layout, kind: Kind):
    rig = Rig(layout=layout, kind=kind, cells=2048, host_bytes=AMPLE)
    prompt = [1, 2, 3, 4, 5] * 20
    ids = [rig.submit(prompt, 3) for _ in range(4)]
    rig.drain()
    assert rig.context.decoded == len(prompt) + 3 + 4 * 2
    assert [rig.cached(id) for id in ids] == [0] + [len(prompt) - 1] * 3


def test_prompts_wait_for_none_whose_state_cannot_be_kept():
    """Nobody waits for a snapshot that host RAM has no room for, or that could not be made."""
    prompt = [1, 2, 3, 4, 5] * 20
    for host_bytes, fails in ((0, 0), (len(prompt), 0), (AMPLE, 100)):
        rig = Rig(layout="streams", cells=2048, host_bytes=host_bytes)
        rig.context.fails["save"] = fails
        ids = [rig.submit(prompt, 3) for _ in range(4)]
        rig.drain()
        assert [rig.tokens(id) for id in ids] == [answer(prompt, 3)] * 4
        assert [rig.cached(id) for id in ids] == [0] * 4


@pytest.mark.parametrize("kind", ["window", "recurrent"])
@each_layout
def test_where_a_prompt_will_part_its_state_is_kept(layout: Layout, kind: Kind):
    """At the boundaries that the request names, every so many tokens, before the last token, and where prompts did part."""
    rig = Rig(layout=layout, kind=kind, cells=4096, host_bytes=AMPLE, snapshot_every=50)
    prompt = [i % 60 + 1 for i in range(120)]
    rig.ask(prompt, 2, boundaries=(37, 300))
    cases = {20: 0, 40: 37, 49: 37, 60: 50, 110: 100, 119: 119}
    for common, cached in cases.items():
        id = rig.submit([*prompt[:common], 63, 62], 1)
        rig.drain()
        assert rig.cached(id) == cached
        id = rig.submit([*prompt[:common], 61, 62], 1)
        rig.drain()
        assert rig.cached(id) == (common if common - cached >= 8 else cached)


def test_no_sequence_is_asked_for_a_state_that_it_has_passed():
    """The second of three is to be put back at 31; only then the third asks for what it begins with."""
    rig = Rig(kind="window", cells=512, host_bytes=AMPLE, snapshot_every=100)
    prompt = [i + 1 for i in range(31)]
    rig.ask([*prompt, 40], 1)
    ids = [rig.submit([*prompt, 41], 2), rig.submit([*prompt[:20], 42], 2)]
    rig.drain(20)
    assert [rig.cached(id) for id in ids] == [31, 0]


@each_kind
@each_layout
def test_the_next_turn_continues_an_answer(layout: Layout, kind: Kind):
    rig = Rig(layout=layout, kind=kind, cells=2048, host_bytes=AMPLE)
    turn = [1, 2, 3]
    for _ in range(4):
        turn += [*rig.ask(turn, 12)[:-1]]
        cached = len(turn)
        turn += [9, 9]
        id = rig.submit(turn, 1)
        rig.drain()
        assert rig.cached(id) == cached


@each_kind
@each_layout
def test_of_an_edited_history_the_beginning_is_found(layout: Layout, kind: Kind):
    rig = Rig(layout=layout, kind=kind, cells=2048, host_bytes=AMPLE, snapshot_every=1000)
    prompt = [i % 60 + 1 for i in range(100)]
    rig.ask(prompt, 20)
    edited = [*prompt, 63, 62, 61]
    id = rig.submit(edited, 3)
    rig.drain()
    assert rig.cached(id) == (100 if kind == "attention" else 99)
    assert rig.tokens(id) == answer(edited, 3)


@pytest.mark.parametrize("kind", ["window", "recurrent"])
@each_layout
def test_a_state_that_cannot_be_cut_is_continued_only_as_it_is(layout: Layout, kind: Kind):
    rig = Rig(layout=layout, kind=kind, cells=1024)
    whole = [1, 2, 3, 4, *rig.ask([1, 2, 3, 4], 4)[:-1]]
    part = rig.submit([1, 2, 3, 4, 8, 8], 1)
    more = rig.submit([*whole, 8], 1)
    rig.drain()
    assert (rig.cached(part), rig.cached(more)) == (0, len(whole))


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


def test_what_ends_early_took_what_was_computed_of_it():
    rig = Rig(cells=256, batch=32, cache_cells=0)
    running = rig.submit([1] * 100, 4)
    rig.step()
    waiting = rig.submit([2] * 100, 4)
    for id in (running, waiting):
        rig.cancel(id)
    ended = rig.submit([3] * 100, 4)
    rig.drain()
    computed = sum(map(len, rig.chunks[running]))
    assert 0 < computed < 100
    usages = [rig.last(id).usage for id in (running, waiting, ended)]
    assert [(each.prompt_tokens, each.completion_tokens) for each in usages] == [(computed, 0), (0, 0), (100, 4)]


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
    assert rig.context.used < 100
    assert rig.stored() == [[*prompt, answer(prompt, 1)[0]]]
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


@each_kind
@each_layout
def test_a_state_that_cannot_be_put_back_is_computed_again(layout: Layout, kind: Kind):
    rig = Rig(layout=layout, kind=kind, cells=512, parallel=1, cache_cells=0, host_bytes=AMPLE)
    prompt = [1, 2, 3, 4] * 30
    whole = [*prompt, *rig.ask(prompt, 2)[:-1]]
    rig.rest()
    rig.ask([9, 9], 1)
    rig.context.fails["restore"] = 1
    again = rig.submit([*whole, 5], 3)
    rig.drain()
    assert rig.cached(again) == 0
    assert rig.tokens(again) == answer([*whole, 5], 3)
    assert rig.context.fails["restore"] == 0


@each_kind
@each_layout
def test_a_state_that_cannot_be_put_back_concerns_one_request(layout: Layout, kind: Kind):
    """What others were given in the same step stays theirs, also what they share with the one that failed."""
    rig = Rig(layout=layout, kind=kind, cells=2048, cache_cells=0, host_bytes=AMPLE, parallel=4)
    prompt = [1, 2, 3, 4] * 30
    whole = [*prompt, *rig.ask(prompt, 2)[:-1]]
    rig.rest()
    rig.ask([9, 9], 1)
    running = rig.submit([7] * 20, 30)
    rig.step()
    rig.context.fails["restore"] = 1
    ids = [rig.submit([*whole, 5 + i], 3) for i in range(3)]
    rig.drain()
    assert [rig.tokens(id) for id in ids] == [answer([*whole, 5 + i], 3) for i in range(3)]
    assert rig.tokens(running) == answer([7] * 20, 30)
    assert rig.put_back and rig.put_back <= set(ids)


def test_a_prefix_put_back_behind_a_shared_one_may_fail():
    rig = Rig(cells=512, cache_cells=0, host_bytes=AMPLE)
    prompt = [1, 2, 3, 4] * 30
    rig.ask(prompt, 2)
    rig.ask([9, 9], 1)
    holder = rig.submit([*prompt[:50], 8], 30)
    rig.step()
    rig.context.fails["restore"] = 1
    ids = [rig.submit([*prompt, 5 + i], 3) for i in range(3)]
    rig.drain()
    assert [rig.tokens(id) for id in ids] == [answer([*prompt, 5 + i], 3) for i in range(3)]
    assert rig.tokens(holder) == answer([*prompt[:50], 8], 30) and holder not in rig.put_back


def test_a_prefix_put_back_for_several_at_once_is_shared_again():
    rig = Rig(cells=512, cache_cells=0, host_bytes=AMPLE)
    prompt = [1, 2, 3, 4] * 30
    rig.ask(prompt, 2)
    rig.ask([9, 9], 1)
    ids = [rig.submit([*prompt, 5 + i], 4) for i in range(3)]
    rig.step()
    rig.step()
    assert rig.context.used == rig.cache.used < 150
    rig.drain()
    assert [rig.cached(id) for id in ids] == [120] * 3


@each_kind
@each_layout
def test_idle_time_saves_what_finished(layout: Layout, kind: Kind):
    rig = Rig(layout=layout, kind=kind, cells=4096, host_bytes=AMPLE)
    first = [1, 2, 3, 4] * 30
    for _ in range(3):
        whole = [*first, *rig.ask(first, 3)[:-1]]
        rig.rest()
        assert rig.cache.unsaved(whole) == 0, "a turn was passed over"
        first = [*whole, *[7] * 80]
    assert not rig.worker._save_idle()


@each_kind
def test_a_preempted_request_is_not_computed_twice(monkeypatch: pytest.MonkeyPatch, kind: Kind):
    monkeypatch.setattr("locallab.engine.scheduler.LOOKAHEAD", 1)
    rig = Rig(kind=kind, cells=256, parallel=4, cache_cells=0, host_bytes=AMPLE)
    ids = [rig.submit([i + 1] * 80, 60) for i in range(3)]
    rig.drain()
    assert rig.scheduler.preemptions > 0
    assert [rig.tokens(id) for id in ids] == [answer([i + 1] * 80, 60) for i in range(3)]
    assert rig.context.decoded == 3 * (80 + 59)
    assert [rig.cached(id) for id in ids] == [0] * 3


@each_kind
@each_layout
def test_a_request_that_waits_gets_its_turn(layout: Layout, kind: Kind):
    rig = Rig(layout=layout, kind=kind, cells=2048, parallel=2, host_bytes=AMPLE)
    long = [rig.submit([i + 1] * 20, 600) for i in range(2)]
    late = rig.submit([50] * 20, 4)
    steps = 0
    while not rig.last_or_none(late):
        rig.step()
        rig.worker._hand_out()
        steps += 1
    assert scheduler.TURN <= steps < scheduler.TURN + 20
    assert [len(rig.tokens(id)) < 600 for id in long] == [True, True]
    rig.drain()
    assert [rig.tokens(id) for id in long] == [answer([i + 1] * 20, 600) for i in range(2)]
    assert rig.context.decoded == 2 * (20 + 599) + 20 + 3, "what had its turn was computed again"


def test_a_turn_is_not_cut_shortly_before_its_end():
    rig = Rig(cells=2048, parallel=1)
    long = rig.submit([1] * 20, scheduler.TURN + 20)
    late = rig.submit([50] * 20, 4)
    rig.drain()
    assert rig.put_back == set()
    assert (len(rig.tokens(long)), len(rig.tokens(late))) == (scheduler.TURN + 20, 4)


def test_answers_in_streams_close_their_gaps_where_a_move_pays():
    """Eight answers of different lengths: each that ends leaves a gap, which is filled at once, or never."""
    gaps = {}
    for move_cost in (0.0001, 10.0):
        rig = Rig(layout="streams", cells=8 * 256, parallel=8, step_cost=0.01, move_cost=move_cost)
        ids = [rig.submit([i + 1] * 10, 30 + 20 * ((i * 3) % 8)) for i in range(8)]
        gaps[move_cost] = 0
        while not rig.last_or_none(ids[7]):
            rig.step()
            gaps[move_cost] += rig.gaps()
            rig.worker._hand_out()
        rig.drain()
        assert [rig.tokens(id) for id in ids] == [answer([i + 1] * 10, 30 + 20 * ((i * 3) % 8)) for i in range(8)]
    assert gaps[0.0001] <= 8 < 60 < gaps[10.0]


def test_an_answer_that_cannot_be_moved_is_computed_again():
    rig = Rig(layout="streams", cells=4 * 256, parallel=4, step_cost=0.01)
    ids = [rig.submit([i + 1] * 10, 5 if i == 1 else 40) for i in range(4)]
    rig.context.fails["restore"] = 1
    rig.drain()
    assert rig.context.fails["restore"] == 0
    assert [rig.tokens(id) for id in ids] == [answer([i + 1] * 10, 5 if i == 1 else 40) for i in range(4)]
    assert len(rig.put_back) == 1


def test_long_prompts_are_read_in_high_streams_and_short_ones_in_low_ones():
    rig = Rig(layout="streams", cells=8 * 512, parallel=8, chunk=16)
    rig.submit([1] * 200, 4)
    rig.submit([2] * 10, 4)
    rig.step()
    assert [s.slot for s in rig.scheduler.running] == [7, 0]


@pytest.mark.parametrize("move_cost", [0.0, 0.01])
def test_a_prefix_is_put_back_only_where_that_is_faster(move_cost: float):
    """A token takes a millisecond to compute."""
    rig = Rig(cells=512, cache_cells=0, host_bytes=AMPLE, move_cost=move_cost)
    prompt = [1, 2, 3, 4] * 30
    rig.ask(prompt, 2)
    rig.ask([9, 9], 1)
    again = rig.submit([*prompt, 5], 3)
    rig.drain()
    assert rig.cached(again) == (0 if move_cost else 120)


def who_waits(**waiter: bool) -> tuple[Rig, list[int]]:
    """Return a rig that has begun the first of three long prompts; a short one waits for what the second begins with."""
    rig = Rig(cells=2048, chunk=16, batch=64)
    ids = [rig.submit([i + 1] * 300, 1) for i in range(3)]
    rig.step()
    assert list(rig.chunks) == ids[:1]
    ids.append(rig.submit([*[2] * 40, 9], 1, **waiter))  # type: ignore[arg-type]
    return rig, ids


def test_what_others_wait_for_inherits_their_length():
    """In turns the oldest gets the budget, and the one for which the shortest waits."""
    rig, ids = who_waits()
    for _ in range(2):
        rig.step()
    assert list(rig.chunks) == ids[:2]
    rig.drain()
    assert rig.cached(ids[3]) == 40


def test_what_others_wait_for_inherits_their_urgency():
    rig, ids = who_waits(urgent=True)
    rig.step()
    assert [rig.chunks[id] != [] for id in ids] == [True, True, False, False]
    assert len(rig.chunks[ids[0]]) == 1
    rig.drain()
    assert rig.cached(ids[3]) == 40


def test_without_room_a_finished_prefix_goes_first():
    rig = Rig()
    rig.submit([1, 2, 3], 4)
    rig.drain()
    assert rig.scheduler.cache.cold_cells
    id = rig.submit([7, 8, 9], 4)
    rig.context.fails["decode"] = 1
    rig.drain()
    assert rig.tokens(id) == answer([7, 8, 9], 4)
    assert rig.scheduler.preemptions == 0


def test_without_room_the_youngest_is_preempted_and_computed_again():
    rig = Rig(cache_cells=0)
    ids = [rig.submit([i, 2, 3], 6) for i in range(3)]
    rig.step()
    rig.context.fails["decode"] = 2
    rig.drain()
    assert [rig.tokens(id) for id in ids] == [answer([i, 2, 3], 6) for i in range(3)]
    assert rig.scheduler.preemptions == 2


def test_without_room_for_a_single_sequence_it_fails():
    rig = Rig(cache_cells=0)
    rig.submit([1, 2, 3], 4)
    rig.context.fails["decode"] = 1
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
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(KINDS),
    others=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    urgent=st.integers(1, 60),
    flood=st.integers(1, 4),
    parallel=st.integers(1, 6),
    tile=st.sampled_from([0, 4, 16, 32]),
    chunk=st.sampled_from([1, 8, 40]),
)
@settings(max_examples=60, deadline=None)
def test_urgent_requests_starve_nobody(layout, kind, others, urgent, flood, parallel, tile, chunk):
    """However many come, who waits gets in, and who is in gets half of what prompts are given."""
    cells = 512 * (parallel if layout == "streams" else 1)
    rig = Rig(
        layout=layout, kind=kind, cells=cells, parallel=parallel, slots=parallel + 3, chunk=chunk, tile=tile, host_bytes=AMPLE
    )
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
