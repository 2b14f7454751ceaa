from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from locallab.engine import prefix_tree
from locallab.engine.cache import NO_MATCH, Match, PrefixCache
from locallab.engine.prefix_tree import NOTHING, common_length
from locallab.engine.record import Record
from tests.support.prefix_model import (
    FIXED,
    ROW,
    PrefixModel,
    Resident,
    common,
    contents,
    fixed_of,
    prefixes,
    record_of,
    rows_of,
)

SLOTS = 5

runs = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=4)
prompts = runs.map(lambda found: [token for token, count in found for _ in range(count)])
choices = st.integers(0, 1 << 16)


class AnyOrder(RuleBasedStateMachine):
    """Everything that may happen to a cache, in any order, beside a model of it without a tree."""

    cuts: bool
    shares: bool

    @initialize(capacity=st.sampled_from([0, 6 * ROW + 2 * FIXED, 12 * ROW + 3 * FIXED, 1 << 20]))
    def begin(self, capacity: int) -> None:
        self.cache = PrefixCache(cuts=self.cuts, shares=self.shares, capacity=capacity)
        self.model = PrefixModel(self.cuts, self.shares, capacity)
        self.records: list[Record] = []

    # Resident sequences

    @rule(tokens=prompts)
    def add(self, tokens: list[int]) -> None:
        slot = next((s for s in range(SLOTS) if s not in self.cache), None)
        if slot is None:
            return
        shared = self.cache.match(tokens).resident
        self.cache.add(slot, tokens, shared)
        self._begin(slot, tokens, shared)

    @precondition(lambda self: not self.shares)
    @rule(tokens=prompts)
    def take_over(self, tokens: list[int]) -> None:
        found = self.cache.match(tokens)
        if found.finished:
            self.cache.take_over(found.finished_slot, tokens, found.finished)
            self._begin(found.finished_slot, tokens, found.finished)

    @rule(which=choices, tokens=prompts)
    def extend(self, which: int, tokens: list[int]) -> None:
        slot = self._running(which)
        if slot is not None:
            self.cache.extend(slot, tokens)
            self.model.entries[slot].tokens += tokens
            self.model.seen.update(prefixes(self.model.entries[slot].tokens))

    @rule(which=choices, most=st.integers(1, 12))
    def advance(self, which: int, most: int) -> None:
        slot = self._running(which)
        if slot is None:
            return
        entry = self.model.entries[slot]
        start, end = entry.computed, min(entry.computed + most, len(entry.tokens))
        shared = self.cache.advance(slot, end - start)
        for other, a, b in shared:
            twin = self.model.entries[other]
            assert other != slot and start <= a < b <= min(end, twin.computed)
            assert twin.tokens[:b] == entry.tokens[:b]
        positions = [at for _, a, b in shared for at in range(a, b)]
        others = [held for s, other in self.model.entries.items() if s != slot for held in other.held]
        twice = [p for p in prefixes(entry.tokens)[start:end] if p in others] if self.shares else []
        assert sorted(positions) == [len(p) - 1 for p in twice], "each cell that is there twice, once"
        entry.computed = end

    @rule(which=choices)
    def finish(self, which: int) -> None:
        slot = self._running(which)
        if slot is None:
            return
        entry = self.model.entries[slot]
        kept = self.model.private(slot) > 0
        assert self.cache.finish(slot) is kept
        entry.live, entry.tokens = False, entry.tokens[: entry.computed]
        if not kept:
            del self.model.entries[slot]

    @rule(which=choices)
    def remove(self, which: int) -> None:
        if self.model.entries:
            slot = self._pick(sorted(self.model.entries), which)
            self.cache.remove(slot)
            del self.model.entries[slot]

    @rule(which=choices)
    def relocate(self, which: int) -> None:
        slot = self._running(which)
        target = next((s for s in range(SLOTS) if s not in self.cache), None)
        if slot is not None and target is not None:
            self.cache.relocate(slot, target)
            self.model.entries[target] = self.model.entries.pop(slot)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.entries.clear()

    # Snapshots

    @rule(which=choices)
    def save(self, which: int) -> None:
        """Store what a resident sequence has computed, as the worker does."""
        computed = [e.tokens[: e.computed] for _, e in sorted(self.model.entries.items()) if e.computed]
        if computed:
            tokens = self._pick(computed, which)
            if self.cache.unsaved(tokens):
                self._store(tokens, self.cache.stored(tokens))

    @rule(tokens=prompts, gap=st.integers(0, 3))
    def store(self, tokens: list[int], gap: int) -> None:
        """Store what overlaps with what is there, or lies behind a gap."""
        self._store(tokens, min(gap, len(tokens) - 1))

    @precondition(lambda self: self.model.stored.rows)
    @rule(which=choices, tokens=st.just([]) | prompts)
    def store_what_follows(self, which: int, tokens: list[int]) -> None:
        whole = [*self._pick(sorted(self.model.stored.rows), which), *tokens]
        self._store(whole, min(self.cache.stored(whole), len(whole) - self.cuts))

    @precondition(lambda self: self.model.stored.all)
    @rule(which=choices, start=st.integers(0, 3))
    def record_what_is_stored(self, which: int, start: int) -> None:
        self.recorded(list(self._pick(sorted(self.model.stored.all), which)), start)

    @rule(tokens=prompts, start=st.integers(0, 3))
    def recorded(self, tokens: list[int], start: int) -> None:
        record = record_of(tokens, min(start, len(tokens) - 1), fixed=not self.cuts)
        self.records.append(record)
        self.cache.recorded(record)
        self.model.record(record)

    @rule(which=choices)
    def lost(self, which: int) -> None:
        if self.records:
            record = self.records.pop(which % len(self.records))
            self.cache.lost(record)
            self.model.lose(record)

    @rule(tokens=prompts)
    def read(self, tokens: list[int]) -> None:
        """Read what a restore misses, after which it misses nothing if there is room."""
        length = self.model.restorable(tokens)
        if not length:
            return
        prompt = tokens[:length]
        missing = self.cache.missing(prompt, length)
        assert set(missing) == self.model.missing(prompt) and len(set(missing)) == len(missing)
        for record in missing:
            self._store(record.tokens.tolist(), record.start)
        if self.model.capacity >= 1 << 20:
            assert not self.cache.missing(prompt, length) and not self.cache.match(tokens).on_disk

    @rule(tokens=prompts)
    def drop(self, tokens: list[int]) -> None:
        found = self.cache.match([*tokens, 0])
        self.cache.drop(tokens)
        left = contents(self.cache)
        if found.stored == len(tokens):
            assert self.cache.match([*tokens, 0]).stored < len(tokens), "what could not be put back is promised again"
        disk = self.model.stored
        assert left.rows_on.items() <= disk.rows_on.items() and left.fixed_on.items() <= disk.fixed_on.items()
        assert left.rows <= disk.rows and left.fixed <= disk.fixed
        self.model.stored = left

    @rule(tokens=prompts)
    def use(self, tokens: list[int]) -> None:
        self.cache.use_stored(tokens, len(tokens))
        for slot in list(self.cache.finished)[:1]:
            self.cache.use(slot)
            assert list(self.cache.finished)[-1] == slot

    # What is found

    @rule(tokens=prompts)
    def look_up(self, tokens: list[int]) -> None:
        self._check_match(tokens)
        assert self.cache.stored(tokens) == self.model.with_rows(tokens)
        assert self.cache.unsaved(tokens) == self.model.unsaved(tokens)

    @rule(which=choices, tokens=prompts)
    def continue_a_stored_one(self, which: int, tokens: list[int]) -> None:
        if self.model.stored.all:
            self.look_up([*self._pick(sorted(self.model.stored.all), which), *tokens])

    @invariant()
    def the_tree_is_sound(self) -> None:
        self.cache.check_integrity()
        assert self.cache.size <= self.cache.capacity
        found = contents(self.cache)
        assert found == self.model.stored
        assert self.cache.size == found.size
        if not self.cuts:
            needed = {prefix for end in found.fixed for prefix in prefixes(end)}
            assert found.rows <= needed, "rows that no fixed part needs"

    @invariant()
    def residents_are_the_model_s(self) -> None:
        assert (self.cache.used, self.cache.cold_cells) == (self.model.used(), self.model.cold())
        assert {s for s in range(SLOTS) if s in self.cache} == self.model.entries.keys()
        assert set(self.cache.finished) == {s for s, e in self.model.entries.items() if not e.live}
        for slot, entry in self.model.entries.items():
            assert self.cache.tokens(slot) == entry.tokens
            assert self.cache.computed(slot) == entry.computed
            assert self.cache.private_cells(slot) == self.model.private(slot)

    def _begin(self, slot: int, tokens: list[int], computed: int) -> None:
        self.model.entries[slot] = Resident(list(tokens), computed)
        self.model.seen.update(prefixes(tokens))

    def _store(self, tokens: list[int], start: int) -> None:
        self.cache.store(tokens, start, rows_of(tokens, start), self.model.fixed_part(tokens))
        self.model.store(tokens, start)
        if self.model.stored.size > self.model.capacity:
            self.model.evicted(contents(self.cache))

    def _check_match(self, tokens: list[int]) -> None:
        cache, model, found = self.cache, self.model, self.cache.match(tokens)
        finished, length = model.resident(tokens, (False,)), model.restorable(tokens)
        assert found.finished == finished and (not finished or model.gives(found.finished_slot, tokens) == finished)
        resident = model.resident(tokens) if self.shares else 0
        assert found.resident == resident and (not resident or model.gives(found.slot, tokens) == resident)
        assert found.live == (model.resident(tokens, (True,)) if self.shares else 0)
        assert found.stored == length
        assert found.on_disk == bool(length and model.missing(tokens[:length]))
        self._check_known(tokens, found)
        assert model.held(tokens) <= found.held <= found.common <= model.ever(tokens)
        for start in range(length if not found.on_disk else 0):
            snapshot = cache.snapshot(tokens, start, length)
            assert snapshot is not None
            assert b"".join(map(bytes, snapshot[0])) == bytes(rows_of(tokens[:length], start))
            assert bytes(snapshot[1]) == bytes(model.fixed_part(tokens[:length]))

    def _check_known(self, tokens: list[int], found: Match) -> None:
        known = self.model.known(tokens)
        assert found.known == max(known.values(), default=0)
        if found.known:
            sources = [slot for slot, length in known.items() if length == found.known]
            computed = self.model.entries
            assert found.source in sources
            assert computed[found.source].computed == max(computed[slot].computed for slot in sources), "who is the furthest"

    def _running(self, which: int) -> int | None:
        running = sorted(slot for slot, entry in self.model.entries.items() if entry.live)
        return self._pick(running, which) if running else None

    def _pick(self, among: list, which: int):  # type: ignore[no-untyped-def,type-arg]
        return among[which % len(among)]


class SharedCells(AnyOrder):
    """A pool, full attention."""

    cuts, shares = True, True


class OwnCells(AnyOrder):
    """Streams, full attention."""

    cuts, shares = True, False


class Snapshots(AnyOrder):
    """A memory that cannot be cut."""

    cuts, shares = False, False


@pytest.mark.parametrize("kind", [SharedCells, OwnCells, Snapshots])
def test_a_cache_does_what_its_model_does(kind: type[AnyOrder]) -> None:
    run_state_machine_as_test(kind, settings=settings(max_examples=80, stateful_step_count=50))


def computed(cache: PrefixCache, slot: int, tokens: list[int]) -> None:
    """Add a running sequence and compute all of it."""
    found = cache.match(tokens)
    cache.add(slot, tokens, found.resident)
    cache.advance(slot, len(tokens) - found.resident)


def store(cache: PrefixCache, tokens: list[int], start: int = 0) -> None:
    cache.store(tokens, start, rows_of(tokens, start), NOTHING if cache.cuts else fixed_of(tokens))


def test_nothing_is_found_in_an_empty_cache() -> None:
    assert PrefixCache().match([1, 2, 3]) == PrefixCache().match([]) == NO_MATCH


def test_the_last_token_is_never_shared_for_its_logits_are_wanted() -> None:
    cache = PrefixCache(capacity=1000)
    computed(cache, 0, [1, 2, 3])
    store(cache, [1, 2, 3])
    found = cache.match([1, 2, 3])
    assert (found.resident, found.live, found.stored, found.known) == (2, 2, 2, 2)


def test_what_is_still_computed_is_known_but_not_resident() -> None:
    cache = PrefixCache()
    cache.add(0, [1, 2, 3, 4, 5])
    cache.advance(0, 2)
    found = cache.match([1, 2, 3, 4, 9])
    assert (found.resident, found.slot, found.known, found.source) == (2, 0, 4, 0)


@pytest.mark.parametrize("first", [0, 1])
def test_who_is_furthest_is_waited_for(first: int) -> None:
    cache = PrefixCache()
    for slot in (0, 1, 2):
        cache.add(slot, [1, 2, 3, 4, 5 + slot])
    cache.advance(first, 2)
    cache.advance(2, 1)
    assert cache.match([1, 2, 3, 4, 9]).source == first


def test_a_slot_has_one_sequence() -> None:
    cache = PrefixCache()
    cache.add(0, [1])
    with pytest.raises(ValueError, match="slot 0 is in use"):
        cache.add(0, [2])


def test_sharing_costs_no_cells() -> None:
    cache = PrefixCache()
    computed(cache, 0, [1, 2, 3, 4])
    computed(cache, 1, [1, 2, 3, 9])
    assert cache.used == 5
    assert cache.private_cells(0) == cache.private_cells(1) == 1
    cache.remove(0)
    assert cache.used == 4


def test_two_that_compute_the_same_at_once_are_told_to_share_it() -> None:
    cache = PrefixCache()
    for slot in (0, 1):
        cache.add(slot, [1, 2, 3, 4, 5 + slot])
    assert cache.advance(0, 3) == []
    assert cache.advance(1, 5) == [(0, 0, 3)]
    assert cache.advance(0, 2) == [(1, 3, 4)]
    assert cache.used == 6


def test_a_finished_sequence_that_adds_nothing_is_dropped() -> None:
    cache = PrefixCache()
    computed(cache, 0, [1, 2, 3, 4])
    computed(cache, 1, [1, 2, 3])
    assert not cache.finish(1)
    assert cache.finish(0)
    assert list(cache.finished) == [0]


def test_what_a_cancelled_sequence_did_not_compute_was_never_there() -> None:
    cache = PrefixCache()
    cache.add(0, list(range(40)))
    cache.advance(0, 20)
    assert cache.finish(0)
    found = cache.match([*range(40), 99])
    assert (found.common, found.continued) == (20, False)


def test_finished_sequences_come_least_recently_used_first() -> None:
    cache = PrefixCache()
    for slot in range(3):
        computed(cache, slot, [slot, 7, 8])
        cache.finish(slot)
    cache.use(0)
    assert list(cache.finished) == [1, 2, 0]


def test_a_finished_state_that_cannot_be_cut_is_continued_or_not_used() -> None:
    cache = PrefixCache(cuts=False, shares=False)
    computed(cache, 0, [1, 2, 3])
    assert cache.match([1, 2, 3, 4]).finished == 0, "a running one moves on"
    cache.finish(0)
    assert cache.match([1, 2, 3, 4]).finished == 3
    assert cache.match([1, 2, 9]).finished == 0


def test_what_parts_from_a_stored_prefix_is_stored_without_it() -> None:
    cache = PrefixCache(capacity=1000)
    system = list(range(20))
    for end in range(20, 25):
        tokens = [*system, end, end]
        store(cache, tokens, cache.stored(tokens))
    assert cache.size == (20 + 5 * 2) * ROW


def test_what_parts_is_told_from_what_followed() -> None:
    cache = PrefixCache()
    cache.add(0, [1, 2, 3, 4])
    cache.add(1, [1, 2, 7, 7])
    assert cache.followers([1, 2, 3, 4], 2) == [7, 7]
    assert cache.followers([1, 2, 3, 4], 3) == []
    assert cache.followers([5], 0) == []


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=20, max_size=60), st.booleans())
def test_what_was_not_used_lately_makes_room(events: list[tuple[bool, int]], cuts: bool) -> None:
    """Seven prompts that share nothing, in room for four; each is stored, or used if it is there."""
    size = 3 * ROW if cuts else 3 * ROW + FIXED
    cache = PrefixCache(cuts=cuts, shares=cuts, capacity=4 * size)
    expected: list[int] = []
    for stores, which in events:
        tokens = [which, 1, 2]
        if stores:
            store(cache, tokens)
        cache.use_stored(tokens, 3)
        if which in expected:
            expected.remove(which)
            expected.append(which)
        elif stores:
            expected = [*expected, which][-4:]
        assert [w for w in range(7) if cache.match([w, 1, 2, 3]).stored == 3] == sorted(expected)


def test_a_long_prefix_outlives_what_follows_it() -> None:
    cache = PrefixCache(capacity=12 * ROW)
    system = list(range(8))
    for last in range(20, 40):
        tokens = [*system, last, last]
        store(cache, tokens, cache.stored(tokens))
        assert cache.stored(tokens) == 10
    assert cache.size == 12 * ROW


def test_a_prefix_that_is_cut_in_two_still_outlives_what_follows_it() -> None:
    cache = PrefixCache(capacity=6 * ROW)
    store(cache, [1, 2])
    store(cache, [1, 2, 3, 4, 5, 6], 2)
    cache.add(0, [1, 2, 3, 4, 9])
    store(cache, [7, 7, 7])
    assert contents(cache).rows == {*prefixes([7, 7, 7]), *prefixes([1, 2])}, "[3, 4] lies behind what is older than it"


def test_a_snapshot_needs_the_rows_of_the_one_before() -> None:
    cache = PrefixCache(cuts=False, shares=False, capacity=6 * ROW + 2 * FIXED)
    store(cache, [1, 2, 3])
    store(cache, [1, 2, 3, 4], 3)
    store(cache, [7])
    assert cache.match([1, 2, 3, 9]).stored == 0, "this made room"
    assert cache.match([1, 2, 3, 4, 9]).stored == 4
    assert cache.size == 5 * ROW + 2 * FIXED


def test_a_snapshot_whose_fixed_part_is_on_disk_alone_is_read_first() -> None:
    cache = PrefixCache(cuts=False, shares=False, capacity=5 * ROW + 2 * FIXED)
    record = record_of([1, 2, 3], 0, fixed=True)
    store(cache, [1, 2, 3])
    cache.recorded(record)
    store(cache, [1, 2, 3, 4], 3)
    store(cache, [7])
    found = cache.match([1, 2, 3, 9])
    assert (found.stored, found.on_disk) == (3, True)
    assert cache.missing([1, 2, 3], 3) == [record]
    assert cache.record([1, 2, 3, 9], 3) is record
    assert cache.snapshot([1, 2, 3], 0, 3) is None


def test_a_snapshot_that_could_not_be_put_back_is_promised_no_more() -> None:
    cache = PrefixCache(cuts=False, shares=False, capacity=1000)
    store(cache, [1, 2, 3])
    store(cache, [1, 2, 3, 4], 3)
    cache.recorded(record_of([1, 2, 3], 0, fixed=True))
    cache.drop([1, 2, 3])
    assert cache.match([1, 2, 3, 9]).stored == 0
    assert cache.unsaved([1, 2, 3]) == 3


def test_rows_without_their_fixed_part_are_no_snapshot() -> None:
    cache = PrefixCache(cuts=False, shares=False, capacity=1000)
    store(cache, [1, 2, 3])
    assert cache.unsaved([1, 2]) == 2
    assert cache.unsaved([1, 2, 3]) == 0
    assert cache.match([1, 2, 9]).stored == 0
    assert cache.snapshot([1, 2], 0, 2) is None


def test_what_is_larger_than_the_ram_is_not_stored() -> None:
    cache = PrefixCache(capacity=4 * ROW)
    store(cache, [1, 2, 3])
    store(cache, [5, 6, 7, 8, 9])
    assert (cache.stored([5]), cache.stored([1, 2, 3])) == (0, 3)


WHY: dict[str, tuple[Match, int, bool, tuple[str, int]]] = {
    "all but the last token": (Match(resident=99, common=99, held=99), 99, True, ("end", 99)),
    "all that is known, the next turn": (Match(resident=60, common=60, held=60), 60, True, ("end", 60)),
    "never seen": (NO_MATCH, 0, True, ("first time", 0)),
    "hardly anything in common": (Match(common=5, continued=True), 0, True, ("first time", 0)),
    "others went on otherwise": (Match(resident=60, common=60, held=60, continued=True), 60, True, ("diverged", 60)),
    "a few tokens before they part": (Match(resident=56, common=60, held=60, continued=True), 56, True, ("diverged", 60)),
    "seen, and dropped": (Match(common=60, continued=True), 0, True, ("evicted", 0)),
    "a part is dropped": (Match(resident=30, common=60, held=30), 30, True, ("evicted", 30)),
    "no snapshot where they part": (Match(stored=30, common=60, held=60, continued=True), 30, False, ("no snapshot", 60)),
    "the snapshot is dropped": (Match(stored=30, common=60, held=30, continued=True), 30, False, ("evicted", 30)),
    "a restore that did not pay": (Match(stored=60, common=60, held=60), 0, True, ("evicted", 0)),
}


@pytest.mark.parametrize(("found", "hit", "cuts", "expected"), WHY.values(), ids=WHY)
def test_why_a_prompt_got_no_more(found: Match, hit: int, cuts: bool, expected: tuple[str, int]) -> None:
    assert found.why(hit, 100, cuts) == expected


def test_why_is_found_from_what_has_happened() -> None:
    cache = PrefixCache(capacity=1000)
    prompt = list(range(40))

    def why(tokens: list[int]) -> tuple[str, int]:
        found = cache.match(tokens)
        return found.why(found.at_once(True), len(tokens), cuts=True)

    assert why(prompt) == ("first time", 0)
    computed(cache, 0, prompt)
    assert why(prompt) == ("end", 39)
    assert why([*prompt, 1, 2]) == ("end", 40)
    assert why([*prompt[:20], 99, 99]) == ("diverged", 20)
    cache.finish(0)
    cache.remove(0)
    assert why(prompt) == ("evicted", 0)


def test_evicted_prompts_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_tree, "FORGET", 100)
    cache = PrefixCache()
    for first in range(50):
        computed(cache, 0, [first, *range(100, 109)])
        cache.remove(0)
        cache.check_integrity()
        assert contents_length(cache) <= 110
    assert cache.match([49, 100, 0]).common == 2
    assert cache.match([0, 100, 0]).common == 0


def test_what_is_stored_now_is_not_forgotten_with_the_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_tree, "FORGET", 6)
    cache = PrefixCache()
    prompt = [7] * 8
    for record in (record_of(prompt[:1], 0), record_of(prompt, 1)):
        cache.recorded(record)
        cache.check_integrity()
    assert cache.stored(prompt) == 8
    cache = PrefixCache()
    cache.recorded(record_of(prompt, 1))
    assert cache.match([*prompt, 0]).common == 8


def contents_length(cache: PrefixCache) -> int:
    """Return the tokens in the whole tree."""
    nodes = [cache._root]
    for node in nodes:
        nodes.extend(node.children.values())
    return sum(len(node.tokens) for node in nodes)


@given(prompts, prompts, st.integers(0, 3))
def test_the_common_length_is_that_of_a_loop(run: list[int], tokens: list[int], start: int) -> None:
    start = min(start, len(run))
    assert common_length(run, tokens, start) == common(run[start:], tokens)


class CountingList(list[int]):
    """Tokens that count how many of them are compared, and how often."""

    tokens = looks = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        found = super().__getitem__(index)
        self.looks += 1
        self.tokens += len(found) if isinstance(index, slice) else 1
        return found


class CountingDict(dict[int, object]):
    looks = 0

    def __getitem__(self, key: int) -> object:
        self.looks += 1
        return super().__getitem__(key)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("stairs", [True, False])
def test_a_look_up_compares_each_token_a_few_times(stairs: bool, begun: bool) -> None:
    """64 sequences of 8,000 tokens, which part from the prompt after 125, 250, ... tokens, or all in its middle."""
    cache = PrefixCache(capacity=1 << 20)
    prompt = CountingList(range(8000))
    for slot in range(64):
        parts = 125 * slot if stairs else 4000
        cache.add(slot, [*prompt[:parts], *range(10_000 * (slot + 1), 10_000 * (slot + 1) + 8000 - parts)])
        if begun:
            cache.advance(slot, 8000)
    entries = cache._entries = CountingDict(cache._entries)  # type: ignore[assignment]
    prompt.tokens = prompt.looks = 0
    found = cache.match(prompt)
    assert found.known == (63 * 125 if stairs else 4000)
    assert prompt.tokens <= 3 * 8000
    assert prompt.looks <= 4 * 64
    assert entries.looks <= 64


class Apart(RuleBasedStateMachine):
    """Several owners in one cache without a limit: each finds what it would find in a cache of its own, and what is public."""

    @initialize(
        cuts=st.booleans(), shares=st.booleans(), public=st.lists(prompts.map(lambda found: found[:5]), max_size=2).map(tuple)
    )
    def begin(self, cuts: bool, shares: bool, public: tuple[list[int], ...]) -> None:
        self.cuts, self.public = cuts, public
        self.all = PrefixCache(cuts=cuts, shares=shares, capacity=1 << 20)
        self.own = {owner: PrefixCache(cuts=cuts, shares=shares, capacity=1 << 20) for owner in ("ann", "bob")}
        for cache in (self.all, *self.own.values()):
            cache.public = public
        self.slots: dict[int, str] = {}
        self.free = iter(range(1 << 20))

    def both(self, owner: str) -> tuple[PrefixCache, PrefixCache]:
        return self.all, self.own[owner]

    def beyond_public(self, tokens: list[int], start: int) -> int:
        """Return where a part of a prompt may begin: not behind public tokens, which one owner may have of the other."""
        start = min(start, len(tokens) - 1)
        return 0 if start <= max((common_length(prompt, tokens) for prompt in self.public), default=0) else start

    @rule(owner=st.sampled_from(["ann", "bob"]), tokens=prompts, more=prompts, computed=st.integers(0, 20), ends=st.booleans())
    def ask(self, owner: str, tokens: list[int], more: list[int], computed: int, ends: bool) -> None:
        slot = next(self.free)
        kept = set()
        for cache in self.both(owner):
            cache.add(slot, tokens, owner=owner)
            cache.extend(slot, more)
            cache.advance(slot, min(computed, len(tokens) + len(more)))
            if not ends or cache.finish(slot):
                kept.add(cache)
        if len(kept) == 1:  # another owner has the same public part
            kept.pop().remove(slot)
        elif kept:
            self.slots[slot] = owner

    @rule(which=choices)
    def remove(self, which: int) -> None:
        if self.slots:
            slot = sorted(self.slots)[which % len(self.slots)]
            for cache in self.both(self.slots.pop(slot)):
                cache.remove(slot)

    @rule(owner=st.sampled_from(["ann", "bob"]), tokens=prompts, start=st.integers(0, 3))
    def store(self, owner: str, tokens: list[int], start: int) -> None:
        start = self.beyond_public(tokens, start)
        for cache in self.both(owner):
            cache.store(tokens, start, rows_of(tokens, start), NOTHING if self.cuts else fixed_of(tokens), owner)

    @rule(owner=st.sampled_from(["ann", "bob"]), tokens=prompts, start=st.integers(0, 3))
    def record(self, owner: str, tokens: list[int], start: int) -> None:
        record = dataclasses.replace(record_of(tokens, self.beyond_public(tokens, start), fixed=not self.cuts), owner=owner)
        for cache in self.both(owner):
            cache.recorded(record)

    @rule(owner=st.sampled_from(["ann", "bob"]), tokens=prompts)
    def look_up(self, owner: str, tokens: list[int]) -> None:
        found, alone = (cache.match(tokens, owner) for cache in self.both(owner))
        public = max((common_length(prompt, tokens) for prompt in self.public), default=0)
        for name in ("resident", "live", "finished", "stored", "known", "held", "common"):
            mine, expected = getattr(found, name), getattr(alone, name)
            assert expected <= mine <= max(expected, public), f"{name} is another owner's"
        if not self.public:
            assert found == alone
        if found.common > public:
            assert found.continued == alone.continued
        for cache in self.both(owner):
            cache.check_integrity()

    @rule(tokens=prompts)
    def nobody_sees_it_without_an_owner(self, tokens: list[int]) -> None:
        public = max((common_length(prompt, tokens) for prompt in self.public), default=0)
        assert self.all.match(tokens).common <= public


TestApart = Apart.TestCase
TestApart.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
