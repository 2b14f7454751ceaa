"""The choice of a replica: examples of each rule, then any order of events against a table without shortcuts."""

from __future__ import annotations

import collections
import dataclasses
import random
import time
from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from locallab.cluster.prefixes import CHARACTERS, EDGES, digests
from locallab.cluster.routing import ANSWER, RECENT, Published, Route, Table

STEP = EDGES[0] // CHARACTERS
"""Tokens from one digest to the next, in short texts."""


def text(name: str, steps: int) -> str:
    """Return a text that reaches so many edges and shares none with one of another name."""
    return (name + "." * EDGES[0])[: EDGES[0]] * steps


def route(*texts: str) -> Route:
    whole = "".join(texts)
    return Route(digests("", whole), len(whole))


def table(*replicas: Hashable, seed: int = 0) -> Table:
    made = Table(random.Random(seed))
    made.set_replicas(replicas)
    return made


def holding(replica: Hashable, what: Route, number: int = 1, work: int = 0, *, at: Table) -> None:
    at.publish(replica, Published(number, frozenset(what.digests), work))


class TestPrice:
    """A price is the work ahead and the tokens that are missing; the boundary is where what a prefix saves equals a queue."""

    SYSTEM = route(text("system", 20))
    ASKED = route(text("system", 20), text("asked", 2))

    @pytest.mark.parametrize("queue", [0, 1, 20 * STEP - 1, 20 * STEP], ids=str)
    def test_the_longer_prefix_wins_up_to_a_queue_as_long_as_what_it_saves(self, queue: int) -> None:
        made = table("has", "free")
        holding("has", self.SYSTEM, work=queue, at=made)
        assert made.price(self.ASKED, "has") == queue + self.ASKED.tokens - 20 * STEP
        assert made.price(self.ASKED, "free") == self.ASKED.tokens
        assert made.choose(self.ASKED) == ["has", "free"]

    @pytest.mark.parametrize("queue", [20 * STEP + 1, 2000], ids=str)
    def test_beyond_that_it_does_not(self, queue: int) -> None:
        made = table("has", "free")
        holding("has", self.SYSTEM, work=queue, at=made)
        assert made.choose(self.ASKED) == ["free", "has"]

    def test_of_two_prefixes_only_the_difference_counts(self) -> None:
        made = table("longer", "shorter")
        holding("shorter", route(text("system", 15)), at=made)
        for number, (queue, best) in enumerate([(5 * STEP, "longer"), (5 * STEP + 1, "shorter")], 1):
            holding("longer", self.SYSTEM, number, queue, at=made)
            assert made.choose(self.ASKED)[0] == best

    def test_work_on_what_a_request_shares_is_not_ahead_of_it(self) -> None:
        made = table("one")
        made.send("first", self.SYSTEM, "one")
        rest = self.SYSTEM.tokens - 20 * STEP
        assert made.price(self.ASKED, "one") == ANSWER + rest + self.ASKED.tokens - 20 * STEP
        assert made.price(route(text("other", 5)), "one") == ANSWER + self.SYSTEM.tokens + route(text("other", 5)).tokens

    def test_what_two_requests_share_is_computed_once(self) -> None:
        made = table("one")
        for request in range(2):
            made.send(request, self.SYSTEM, "one")
        assert made.price(Route(), "one") - 1 == 20 * STEP + 2 * (ANSWER + self.SYSTEM.tokens - 20 * STEP)

    def test_what_was_computed_is_no_work(self) -> None:
        made = table("one")
        made.send("first", self.SYSTEM, "one")
        holding("one", self.SYSTEM, at=made)
        assert made.price(Route(), "one") == ANSWER + self.SYSTEM.tokens - 20 * STEP + Route().tokens

    def test_work_that_others_sent_counts_once(self) -> None:
        made = table("one")
        made.send("own", self.SYSTEM, "one")
        own = made.price(Route(), "one") - 1
        made.publish("one", Published(1, frozenset(), own + 100))
        assert made.price(Route(), "one") - 1 == own + 100
        made.end("own")
        assert made.price(Route(), "one") - 1 == 100
        made.publish("one", Published(2, frozenset(), 0))
        assert made.price(Route(), "one") - 1 == 0


class TestChoose:
    def test_a_session_stays_while_its_replica_is_not_overloaded(self) -> None:
        made = table(*range(8))
        asked = [text("system", 4)]
        homes = []
        for turn in range(20):
            asked.append(text(f"turn {turn}", 5))
            homes.append(made.choose(route(*asked))[0])
            made.send(turn, route(*asked), homes[-1])
            for other in set(range(8)) - {homes[-1]}:
                made.publish(other, Published(turn + 1, frozenset(), 0))
            holding(homes[-1], route(*asked), turn + 1, work=4 * STEP, at=made)
            made.end(turn)
        assert len(set(homes)) == 1
        holding(homes[0], route(*asked), 100, work=route(*asked).tokens + 1, at=made)
        assert made.choose(route(*asked))[0] != homes[0]

    @pytest.mark.parametrize("count", [8, 64, 512])
    def test_a_burst_with_one_new_system_prompt_goes_to_few(self, count: int) -> None:
        made = table(*range(count))
        used: collections.Counter[Hashable] = collections.Counter()
        for request in range(100):
            asked = route(text("system", 60), text(f"request {request}", 1))
            replica = made.choose(asked)[0]
            used[replica] += 1
            made.send(request, asked, replica)
        each = ANSWER + 2 * STEP
        most = 60 * STEP // each + 2
        assert 100 // most <= len(used) <= 8
        assert max(used.values()) <= 2 * most

    @pytest.mark.parametrize("count", [8, 512])
    def test_routers_that_know_nothing_of_each_other_send_a_new_prompt_to_the_same_two(self, count: int) -> None:
        asked = [route(text("system", 60), text(f"request {seed}", 1)) for seed in range(40)]
        chosen = {table(*range(count), seed=seed).choose(each)[0] for seed, each in enumerate(asked)}
        assert len(chosen) <= 2
        others = {table(*range(count)).choose(route(text(f"system {at}", 60)))[0] for at in range(200)}
        assert len(others) > min(count, 200) * 0.5

    def test_new_prompts_move_little_when_a_replica_leaves(self) -> None:
        asked = [route(text(f"system {at}", 9)) for at in range(200)]
        before, after = table(*range(16)), table(*range(16))
        after.set_replicas(range(15))
        moved = [each for each in asked if not set(before._homes(each, dict.fromkeys(range(16)))) & {15}]
        assert len(moved) > 100
        assert all(
            before._homes(each, dict.fromkeys(range(16))) == after._homes(each, dict.fromkeys(range(15))) for each in moved
        )

    def test_a_prompt_is_new_where_those_that_have_it_are_not_asked_about(self) -> None:
        asked, others = route(text("system", 60)), range(1, 64)
        chosen = set()
        for seed in range(40):
            made = table(*range(64), seed=seed)
            holding(0, asked, at=made)
            chosen.add(made.choose(asked, others)[0])
        assert len(chosen) <= 2

    def test_a_shorter_prefix_serves_where_those_with_longer_ones_are_busy(self) -> None:
        made = table(*range(200))
        for replica, steps in ((0, 60), (1, 50), (2, 40)):
            holding(replica, route(text("system", steps)), work=(2 - replica) * 1000, at=made)
        assert all(made.choose(route(text("system", 60)))[0] == 2 for _ in range(20))

    def test_short_requests_are_spread(self) -> None:
        made = table(*range(8))
        for request in range(80):
            made.send(request, Route((), 10), made.choose(Route((), 10))[0])
        loads = collections.Counter(sent.replica for sent in made._sent.values())
        assert len(loads) == 8 and max(loads.values()) <= 14

    def test_one_that_is_forgotten_is_never_chosen(self) -> None:
        made, asked = table(*range(4)), route(text("system", 9))
        holding(2, asked, at=made)
        made.send("request", asked, 2)
        assert made.choose(asked)[0] == 2
        made.forget(2)
        assert all(2 not in made.choose(asked) for _ in range(50))
        assert made.size == 0
        made.end("request")
        holding(2, asked, 5, at=made)
        assert made.size == 0 and made.replicas == [0, 1, 3]

    def test_one_that_comes_again_begins_anew(self) -> None:
        made, asked = table("a", "b"), route(text("system", 9))
        holding("a", asked, 7, work=9, at=made)
        made.set_replicas(["b"])
        made.set_replicas(["b", "a"])
        assert made.reuse(asked, "a") == (0, 0) and made.price(asked, "a") == asked.tokens
        holding("a", asked, 1, at=made)
        assert made.reuse(asked, "a") == (9, 9 * STEP)

    def test_those_that_are_unknown_come_last(self) -> None:
        made = table("a", "b")
        chosen = made.choose(route(text("x", 3)), ["new", "a", "newer", "b"])
        assert set(chosen[:2]) == {"a", "b"} and chosen[2:] == ["new", "newer"]
        assert made.choose(Route(), ["new", "new"]) == ["new"]
        assert Table().choose(route("x" * 999)) == [] == made.choose(Route(), [])

    def test_only_those_that_are_asked_about_are_chosen(self) -> None:
        made, asked = table(*range(6)), route(text("system", 9))
        holding(0, asked, at=made)
        assert set(made.choose(asked, [3, 4])) == {3, 4}
        holding(4, route(text("system", 2)), at=made)
        assert made.choose(asked, iter([3, 4]))[0] == 4

    @given(st.randoms(), st.lists(st.integers(0, 9), max_size=12))
    def test_everyone_is_named_once(self, rng: random.Random, among: list[int]) -> None:
        made = Table(rng)
        made.set_replicas(range(6))
        for at in range(4):
            made.send(at, route(text("system", at + 1)), at)
        assert sorted(made.choose(route(text("system", 9)), among), key=str) == sorted(set(among), key=str)


class TestForgetting:
    ASKED = route(text("system", 5))

    def test_what_a_request_brings_is_believed_until_two_publications_have_not_had_it(self) -> None:
        made = table("a")
        made.send(1, self.ASKED, "a")
        made.end(1)
        for number, known in ((1, 5), (2, 0)):
            made.publish("a", Published(number))
            assert made.reuse(self.ASKED, "a")[0] == known
        assert made.size == 0

    def test_what_one_request_still_brings_is_not_forgotten_with_another(self) -> None:
        made = table("a")
        for request in range(2):
            made.send(request, self.ASKED, "a")
        made.end(0)
        for number in range(1, 4):
            holding("a", self.ASKED if number == 2 else Route(), number, at=made)
            assert made.reuse(self.ASKED, "a")[0] == 5

    def test_an_old_publication_says_nothing(self) -> None:
        made = table("a")
        holding("a", self.ASKED, 5, at=made)
        made.publish("a", Published(5))
        made.publish("a", Published(4))
        assert made.reuse(self.ASKED, "a")[0] == 5
        made.publish("a", Published(6))
        assert made.reuse(self.ASKED, "a") == (0, 0)

    def test_one_that_publishes_nothing_does_not_fill_the_memory(self) -> None:
        made = table("a", "b")
        for request in range(RECENT // 50 + 20):
            made.send(request, route(text(f"request {request}", 50)), "a")
            made.end(request)
            made.send("again", route(text("request 0", 50)), "a")
            made.end("again")
            assert made.reuse(route(text("request 0", 50)), "a")[0] == 50
        assert made.size <= RECENT
        assert made.reuse(route(text(f"request {request}", 50)), "a")[0] == 50
        assert made.reuse(route(text("request 1", 50)), "a")[0] == 0

    def test_a_request_that_is_sent_again_is_counted_once(self) -> None:
        made = table("a", "b")
        for replica in ("a", "b", "gone"):
            made.send("request", self.ASKED, replica)
        assert {made.price(Route(), each) for each in "ab"} == {1}


@dataclasses.dataclass
class Known:
    """What is known of one replica, without shortcuts: its last publication, its requests, and for those that have ended the
    publication up to which they are believed."""

    number: int = 0
    held: frozenset[int] = frozenset()
    running: dict[int, Route] = dataclasses.field(default_factory=dict)
    ended: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    @property
    def has(self) -> set[int]:
        believed = {digest for digest, until in self.ended if self.number < until}
        return {*self.held, *believed, *(digest for each in self.running.values() for digest in each.digests)}


NAMES = st.sampled_from("abc")
ROUTES = st.tuples(st.sampled_from("xy"), st.integers(0, 3), st.integers(0, 2)).map(
    lambda drawn: route(text(drawn[0], drawn[1]), text(f"{drawn[0]}{drawn[2]}", drawn[2]))
)


class AnyOrder(RuleBasedStateMachine):
    """Replicas that come and go, publish and get requests, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(random.Random(0))
        self.model: dict[Hashable, Known] = {}
        self.requests = 0

    @initialize()
    def begin(self) -> None:
        self.set_replicas({"a", "b", "c"})

    @rule(names=st.sets(NAMES, min_size=2))
    def set_replicas(self, names: set[str]) -> None:
        self.table.set_replicas(sorted(names))
        self.model = {name: self.model.get(name) or Known() for name in names}

    @precondition(lambda self: len(self.model) > 2)
    @rule(name=NAMES)
    def forget(self, name: str) -> None:
        self.table.forget(name)
        self.model.pop(name, None)

    @rule(name=NAMES, ahead=st.integers(-1, 2), held=st.lists(ROUTES, max_size=3), work=st.integers(0, 500))
    def publish(self, name: str, ahead: int, held: list[Route], work: int) -> None:
        known = self.model.get(name, Known())
        digests = frozenset(digest for each in held for digest in each.digests)
        self.table.publish(name, Published(known.number + ahead, digests, work))
        if ahead > 0 and name in self.model:
            known.number, known.held = known.number + ahead, digests
            assert self.table.price(Route(), name) - 1 >= work

    @rule(name=NAMES, asked=ROUTES)
    def send(self, name: str, asked: Route) -> None:
        before = self.table.price(Route(), name) if name in self.model else 0
        missing = asked.tokens - self.table.reuse(asked, name)[1]
        self.requests += 1
        self.table.send(self.requests, asked, name)
        if name in self.model:
            assert self.table.price(Route(), name) == before + missing + ANSWER
            self.model[name].running[self.requests] = asked

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        request = data.draw(st.integers(1, self.requests))
        self.table.end(request)
        for known in self.model.values():
            if asked := known.running.pop(request, None):
                known.ended += [(digest, known.number + 2) for digest in asked.digests]

    @rule(asked=ROUTES)
    def choose(self, asked: Route) -> None:
        chosen = self.table.choose(asked)
        assert set(chosen) == self.model.keys() and len(chosen) == len(self.model)
        most = max((self.reuse(asked, each) for each in self.model), default=0)
        if chosen and most:
            longest = [each for each in self.model if self.reuse(asked, each) == most]
            dearest = max(self.table.price(asked, each) for each in longest)
            assert self.table.price(asked, chosen[0]) <= dearest

    def reuse(self, asked: Route, name: Hashable) -> int:
        has = self.model[name].has
        return max((at for at in range(1, len(asked.digests) + 1) if asked.digests[at - 1] in has), default=0)

    @rule(asked=ROUTES)
    def reuse_is_the_longest_prefix(self, asked: Route) -> None:
        for name in self.model:
            count = self.reuse(asked, name)
            assert self.table.reuse(asked, name) == (count, EDGES[count - 1] // CHARACTERS if count else 0)
            assert self.table.price(asked, name) >= asked.tokens - self.table.reuse(asked, name)[1]

    @invariant()
    def nothing_is_left_or_below_zero(self) -> None:
        assert set(self.table.replicas) == self.model.keys()
        assert self.table.size == sum(len(known.has) for known in self.model.values())
        for state in self.table._states.values():
            counters = (state.pending, state.expected)
            assert min([state.rest, state.others, *(count for each in counters for count in each.values())]) >= 0

    def teardown(self) -> None:
        for request in range(self.requests + 1):
            self.table.end(request)
        for name, known in self.model.items():
            assert self.table.price(Route(), name) - 1 == self.table._states[name].others
            for more in (1, 2):
                self.table.publish(name, Published(known.number + more))
            assert self.table.price(Route(), name) - 1 == 0
        assert self.table.size == 0 and not self.table._sent
        self.table.set_replicas([])
        assert self.table.choose(Route()) == [] and not self.table._ring


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40)


def test_a_choice_takes_no_time() -> None:
    made, asked = table(*range(512)), route(text("system", 60), text("asked", 20))
    for replica in range(512):
        holding(replica, route(text("system", 60)), at=made)
    begin = time.perf_counter()
    for _ in range(100):
        made.choose(asked)
    assert time.perf_counter() - begin < 2
