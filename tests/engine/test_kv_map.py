"""The map of the KV cache against a count of its cells. What requests do to it is checked at every step of the rig's worker."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.cache import PrefixCache
from locallab.engine.kv_map import BUCKETS, KvMap, kv_map
from locallab.engine.limits import Limits
from locallab.settings import Layout

LENGTH = 40
"""Tokens of the longest sequence here."""

texts = st.builds(
    lambda base, cut, tail: (base[:cut] + tail)[:LENGTH],
    st.sampled_from([[1] * 30, [1] * 10 + [2] * 20]),
    st.integers(0, 30),
    st.lists(st.integers(1, 3), min_size=1, max_size=10),
)
sequences = st.lists(st.tuples(texts, st.integers(0, LENGTH), st.booleans()), max_size=8)
Sequences = list[tuple[list[int], int, bool]]


def limits(layout: Layout, cells: int, slots: int, cuts: bool = True) -> Limits:
    return Limits(
        cells=cells, batch=64, parallel=slots, slots=slots, cache_cells=cells, step_seconds=1.0, layout=layout, cuts=cuts
    )


def filled(found: Sequences, shares: bool, cuts: bool = True) -> PrefixCache:
    """Return a cache of sequences of which so many tokens are computed, some of them finished."""
    cache = PrefixCache(cuts=cuts, shares=shares)
    for slot, (tokens, computed, running) in enumerate(found):
        cache.add(slot, tokens)
        cache.advance(slot, min(computed, len(tokens)))
        if not running:
            cache.finish(slot)
    return cache


def counted(cache: PrefixCache) -> Counter[str]:
    """Return the kinds of the cells: one for each prefix that is computed, whoever holds it, where sequences share them."""
    holders: dict[object, list[bool]] = {}
    for slot, entry in cache.residents():
        tokens = cache.tokens(slot)
        for length in range(1, entry.computed + 1):
            holders.setdefault((tuple(tokens[:length]), None if cache.shares else slot), []).append(entry.live)
    return Counter("idle" if not any(each) else "shared" if len(each) > 1 else "live" for each in holders.values())


def check(found: KvMap, kinds: Counter[str]) -> None:
    assert {"live": found.live, "shared": found.shared, "idle": found.idle} == {k: kinds[k] for k in ("live", "shared", "idle")}
    assert found.live + found.shared + found.idle + found.free == found.cells
    assert len(found.buckets) <= BUCKETS
    assert tuple(map(sum, zip(*found.buckets, strict=True))) == (found.live, found.shared, found.idle)


@given(sequences, st.sampled_from([320, 1000, 100_000]), st.booleans())
def test_a_pool_is_counted_by_who_holds_each_cell(found: Sequences, cells: int, shares: bool) -> None:
    cache = filled(found, shares, cuts=shares)
    shown = kv_map(cache, limits("unified", cells, 8, cuts=shares))
    check(shown, counted(cache))
    assert shown.streams == 1
    taken = [sum(each) for each in shown.buckets]
    assert taken == sorted(taken, reverse=True) and len([each for each in taken if 0 < each < shown.bucket_cells]) <= 1


@given(sequences, st.integers(8, 192), st.sampled_from([LENGTH, 64, 1000]))
def test_streams_are_shown_where_they_are(found: Sequences, slots: int, length: int) -> None:
    cache = filled(found, shares=False)
    shown = kv_map(cache, limits("streams", slots * length, slots))
    check(shown, counted(cache))
    assert shown.streams == slots and shown.shared == 0
    each, width = len(shown.buckets) // slots, shown.bucket_cells
    assert (each - 1) * width < length <= each * width
    for slot, entry in cache.residents():
        mine = shown.buckets[slot * each : (slot + 1) * each]
        wanted = [max(0, min(entry.computed - at, width)) for at in range(0, length, width)]
        assert mine == tuple((each, 0, 0) if entry.live else (0, 0, each) for each in wanted)


def test_what_several_hold_stands_once_with_the_first_of_them() -> None:
    text = [1] * 10
    shown = kv_map(filled([(text + [2] * 6, 16, True), (text + [3] * 6, 16, True)], True), limits("unified", BUCKETS, 8))
    assert shown.buckets[:23] == ((0, 1, 0),) * 10 + ((1, 0, 0),) * 12 + ((0, 0, 0),)


@pytest.mark.parametrize("cells", [1, 255, 256, 257, 1 << 24])
def test_a_map_has_a_bounded_size(cells: int) -> None:
    shown = kv_map(filled([], True), limits("unified", cells, 8))
    assert len(shown.buckets) <= min(cells, BUCKETS) and shown.free == cells
