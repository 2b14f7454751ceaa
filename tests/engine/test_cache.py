from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.cache import NO_MATCH, Match, PrefixCache
from locallab.engine.host_cache import HostCache


def computed(cache: PrefixCache, sequence: int, tokens: list[int], match: Match = NO_MATCH) -> None:
    cache.add(sequence, tokens, match)
    cache.advance(sequence, len(tokens) - match.ready)


def test_nothing_is_found_in_an_empty_cache():
    assert PrefixCache().match([1, 2, 3]) == (NO_MATCH, NO_MATCH)


def test_the_last_token_is_never_shared_for_its_logits_are_wanted():
    cache = PrefixCache()
    computed(cache, 0, [1, 2, 3])
    assert cache.match([1, 2, 3])[0] == Match(0, 2, 2)


def test_what_is_still_computed_is_known_but_not_ready():
    cache = PrefixCache()
    cache.add(0, [1, 2, 3, 4, 5])
    cache.advance(0, 2)
    ready, known = cache.match([1, 2, 3, 4, 9])
    assert (ready, known) == (Match(0, 4, 2), Match(0, 4, 2))


def test_sharing_costs_no_cells():
    cache = PrefixCache()
    computed(cache, 0, [1, 2, 3, 4])
    ready, _ = cache.match([1, 2, 3, 9])
    computed(cache, 1, [1, 2, 3, 9], ready)
    assert cache.used == 5
    assert cache.private_cells(0) == cache.private_cells(1) == 1
    assert cache.remove(0) == 1
    assert cache.used == 4
    cache.check_integrity()


def test_a_finished_sequence_that_adds_nothing_is_dropped():
    cache = PrefixCache()
    computed(cache, 0, [1, 2, 3, 4])
    computed(cache, 1, [1, 2, 3])
    assert not cache.finish(1)
    assert cache.finish(0)
    assert list(cache.cold) == [0]


def test_the_least_recently_used_comes_first():
    cache = PrefixCache()
    for sequence in range(3):
        computed(cache, sequence, [sequence, 7, 8])
        cache.finish(sequence)
    computed(cache, 3, [0, 7, 9], cache.match([0, 7, 9])[0])
    assert list(cache.cold) == [1, 2, 0]


@pytest.mark.parametrize(
    ("limit", "length", "shared"),
    [
        pytest.param(0, 6, 0, id="a running state: only the whole"),
        pytest.param(6, 6, 4, id="within the window: any part"),
        pytest.param(5, 6, 0, id="beyond the window: only the whole"),
    ],
)
def test_what_cannot_be_rewound_is_not_shared_in_part(limit, length, shared):
    cache = PrefixCache(limit)
    tokens = list(range(length))
    computed(cache, 0, tokens)
    assert cache.match([*tokens, 99])[0] == NO_MATCH, "a live sequence of such a model moves on"
    cache.finish(0)
    assert cache.match([*tokens[:4], 99])[0].ready == shared
    assert cache.match([*tokens, 99])[0].ready == length


lists = st.lists(st.integers(0, 2), min_size=1, max_size=10)


@given(st.lists(lists, min_size=1, max_size=8), lists)
def test_the_longest_prefix_is_found(stored, wanted):
    cache = PrefixCache()
    for sequence, tokens in enumerate(stored):
        computed(cache, sequence, tokens, cache.match(tokens)[0])
        cache.check_integrity()

    def common(tokens: list[int]) -> int:
        n = 0
        while n < min(len(tokens), len(wanted) - 1) and tokens[n] == wanted[n]:
            n += 1
        return n

    ready, known = cache.match(wanted)
    assert ready.ready == known.length == max(common(tokens) for tokens in stored)
    if ready.ready:
        assert stored[ready.sequence][: ready.ready] == wanted[: ready.ready]


@given(st.lists(lists, min_size=1, max_size=8), lists, st.integers(1, 40))
def test_the_host_cache_finds_the_longest_and_stays_within_its_size(stored, wanted, capacity):
    host = HostCache(capacity)
    for tokens in stored:
        host.put(tokens, bytes(tokens))  # type: ignore[arg-type]
        assert host.size <= capacity
        assert host.size == sum(len(entry.tokens) for entry in host._entries.values())
    found = host.match(wanted)
    if found:
        assert found.stored.tokens[: found.length] == wanted[: found.length]
        assert found.length < len(wanted)


def test_the_host_cache_drops_what_was_not_used_lately():
    host = HostCache(4)
    host.put([1, 1], b"11")  # type: ignore[arg-type]
    host.put([2, 2], b"22")  # type: ignore[arg-type]
    found = host.match([1, 1, 1])
    assert found
    host.touch(found.stored)
    host.put([3, 3], b"33")  # type: ignore[arg-type]
    assert host.match([2, 2, 2]) is None
    assert host.match([1, 1, 1])
    assert host.covers([1]) and not host.covers([2])
