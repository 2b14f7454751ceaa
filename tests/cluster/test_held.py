"""The prefixes that a replica publishes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from locallab.cluster.held import AT_ONCE, MOST_WAITS, Held
from locallab.cluster.prefixes import EDGES, digests
from locallab.cluster.routing import Route


def route(text: str) -> Route:
    return Route(digests("model", text), len(text))


def learn(held: Held) -> None:
    """Let the engine have all of what it is asked about."""
    prompts = held.doubtful()
    held.learn(prompts, [len(each.tokens) - 1 for each in prompts])


def test_a_prompt_that_is_never_computed_is_forgotten() -> None:
    held = Held()
    held.add(route("a" * 300), [1] * 75, "")
    for _ in range(MOST_WAITS + 1):
        assert held.doubtful()
        held.learn(held.doubtful(), [0])
    assert not held.doubtful() and not held.digests()


def test_a_prompt_stands_for_all_that_it_begins_with() -> None:
    held = Held()
    first = route("a" * 300)
    held.add(first, [1] * 75, "")
    assert held.digests() == frozenset(), "it is not computed yet"
    learn(held)
    assert held.digests() == frozenset(first.digests) and len(first.digests) == 2
    longer = route("a" * 300 + "b" * 300)
    held.add(longer, [1] * 150, "")
    assert held.digests() == frozenset(first.digests), "what it continues is there still"
    learn(held)
    assert held.digests() == frozenset(longer.digests) > frozenset(first.digests)
    assert len(held.doubtful()) == 1, "what it continues needs no entry of its own"


@given(st.integers(0, 200))
def test_what_was_evicted_is_no_longer_published(known: int) -> None:
    held, asked = Held(), route("a" * 800)
    held.add(asked, [1] * 200, "")
    learn(held)
    held.learn(held.doubtful(), [known])
    tokens = known + (known == 199)
    published = held.digests() if tokens else frozenset()
    for digest, edge in zip(asked.digests, EDGES, strict=False):
        assert (digest in published) == (0.9 * edge / 4 <= tokens and known > 0)
    assert bool(held.doubtful()) == (known > 0)


def test_the_last_used_ones_are_published_where_there_is_no_room_for_all() -> None:
    held = Held(most=10)
    routes = [route(f"{at} " * 200) for at in range(20)]
    for each in routes:
        held.add(each, [1] * 100, "")
        learn(held)
    published = held.digests()
    assert len(published) <= 10 and set(routes[-1].digests) <= published and not set(routes[0].digests) & published
    assert len(held.doubtful()) < 20, "the rest is forgotten"


def test_the_engine_is_asked_about_a_few_at_a_time() -> None:
    held = Held(most=10**6)
    for at in range(3 * AT_ONCE // 2):
        held.add(route(f"{at} " * 100), [at, at], "")
    asked = held.doubtful()
    assert len(asked) == AT_ONCE and asked == held.doubtful(), "those of which nothing is known go first"
    learn(held)
    learn(held)
    turns = [held.doubtful() for _ in range(3)]
    assert all(len(each) <= AT_ONCE for each in turns)
    assert len({id(each) for turn in turns for each in turn}) == 3 * AT_ONCE // 2, "all have their turn"


def test_short_texts_are_not_told_of() -> None:
    held = Held()
    held.add(route("short"), [1], "")
    assert not held.digests() and not held.doubtful()
