"""The plan alone: examples of each rule, then any order of events against a machine of so much memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from locallab.errors import ModelLoadError
from locallab.pool.demand import Action, Close, Fetch, Granted, Load, Policy, Refused, Resident, Ticket
from locallab.pool.memory import MemoryUse, Need
from locallab.pool.plan import Plan

SIZES = {"a": 2, "b": 3, "c": 4, "d": 30, "e": 3}
"""What models take; "d" is larger than any machine here."""


def use(size: int) -> MemoryUse:
    return MemoryUse(ram=size)


class Desk:
    """Carries out what a plan decides on a machine of so much memory; loads, fetches and closes end when told to."""

    def __init__(self, policy: Policy, memory: int) -> None:
        self.plan = Plan(policy)
        self.memory = memory
        self.now = 0.0
        self.fetching: list[str] = []
        self.granted: list[Ticket] = []
        self.refused: dict[Ticket, Exception] = {}
        self.closed: list[str] = []
        self.loads: list[str] = []
        self.busy: Load | Close | None = None

    @property
    def room(self) -> MemoryUse:
        held = [resident.use.ram for resident in self.plan.residents.values()]
        if isinstance(self.busy, Close):
            held.append(self.busy.resident.use.ram)
        return use(self.memory - sum(held))

    def go_on(self) -> None:
        for action in self.plan.decide():
            self.act(action)

    def act(self, action: Action) -> None:
        match action:
            case Fetch(id):
                assert id not in self.fetching
                self.fetching.append(id)
            case Load(id):
                assert self.busy is None and id not in self.plan.residents
                fits = use(SIZES[id]).fits(self.room)
                assert fits or not self.plan.residents, "memory would be needed for both at once"
                self.busy = action
                self.loads.append(id)
            case Close(resident):
                assert self.busy is None
                assert resident.forced or not resident.leases, "a running request is cut"
                self.busy = action
                self.closed.append(resident.id)
            case Granted(ticket, resident):
                assert resident.id == ticket.model and ticket not in self.granted
                self.granted.append(ticket)
            case Refused(ticket, error):
                assert ticket not in self.refused and ticket not in self.granted
                self.refused[ticket] = error

    def ask(self, id: str | None, *, leases: bool = True, force: bool = False) -> Ticket:
        chosen = id or self.plan.choose()
        assert chosen is not None
        ticket = Ticket(leases, named=id is not None)
        self.plan.ask(ticket, chosen, force=force)
        self.go_on()
        return ticket

    def release(self, ticket: Ticket) -> None:
        self.now += 1
        self.plan.release(ticket, self.now)
        self.go_on()

    def end_fetch(self, id: str, error: Exception | None = None) -> None:
        self.fetching.remove(id)
        if error:
            self.plan.failed(id, error, self.room)
        else:
            self.plan.fetched(id, Need(Path(id), use(SIZES[id]), use(SIZES[id])), self.room)
        self.go_on()

    def end_job(self, error: Exception | None = None) -> None:
        job, self.busy = self.busy, None
        self.now += 1
        match job:
            case Load(id) if error:
                self.plan.failed(id, error, self.room)
            case Load(id):
                self.plan.loaded(id, use(SIZES[id]), MemoryUse(self.room.ram - SIZES[id]), self.now)
            case Close():
                self.plan.closed(self.room)
        self.go_on()

    def settle(self) -> None:
        """Ends every fetch, load and close there is."""
        while self.fetching or self.busy:
            if self.fetching:
                self.end_fetch(self.fetching[0])
            else:
                self.end_job()

    def load(self, id: str) -> None:
        self.ask(id, leases=False)
        self.settle()
        assert id in self.plan.residents


def test_a_request_waits_for_its_model() -> None:
    desk = Desk("swap", 10)
    tickets = [desk.ask("a") for _ in range(3)]
    assert desk.fetching == ["a"] and desk.granted == []
    desk.end_fetch("a")
    assert desk.busy == Load("a")
    tickets.append(desk.ask("a"))
    desk.end_job()
    assert desk.granted == tickets and desk.loads == ["a"]
    assert desk.ask("a") in desk.granted
    assert desk.plan.residents["a"].leases == 5


@pytest.mark.parametrize("memory", [4, 10], ids=["room for one", "room for both"])
def test_swap_leaves_one_model(memory: int) -> None:
    desk = Desk("swap", memory)
    desk.load("a")
    ticket = desk.ask("b")
    desk.settle()
    assert ticket in desk.granted and list(desk.plan.residents) == ["b"] and desk.plan.default == "b"


def test_swap_drains_the_old_model_before_the_new_one_loads_where_both_do_not_fit() -> None:
    desk = Desk("swap", 4)
    desk.load("a")
    running = [desk.ask("a"), desk.ask("a")]
    swap = desk.ask("b")
    desk.settle()
    assert desk.loads == ["a"] and desk.closed == []
    desk.release(running[0])
    assert desk.busy is None
    desk.release(running[1])
    assert isinstance(desk.busy, Close)
    desk.end_job()
    assert desk.busy == Load("b")
    desk.end_job()
    assert swap in desk.granted


def test_swap_loads_first_where_both_fit_and_the_old_one_serves_meanwhile() -> None:
    desk = Desk("swap", 10)
    desk.load("a")
    running = desk.ask("a")
    desk.ask("b")
    desk.end_fetch("b")
    assert desk.busy == Load("b") and desk.ask("a") in desk.granted
    desk.end_job()
    assert list(desk.plan.residents) == ["a", "b"] and desk.plan.choose() == "b"
    assert desk.plan.residents["a"].leases == 2 and desk.closed == []
    desk.release(running)
    assert desk.closed == []


def test_a_fetch_disturbs_nobody() -> None:
    desk = Desk("swap", 4)
    desk.load("a")
    desk.ask("b")
    assert desk.fetching == ["b"] and desk.ask("a") in desk.granted and desk.ask(None) in desk.granted


def test_those_who_come_for_the_old_model_queue_behind_the_new_one() -> None:
    desk = Desk("swap", 4)
    desk.load("a")
    running = desk.ask("a")
    first = desk.ask("b")
    desk.end_fetch("b")
    late = [desk.ask("a"), desk.ask("a")]
    joining = desk.ask("b")
    assert desk.granted == [desk.granted[0], running] and desk.plan.choose() == "b"
    desk.release(running)
    desk.settle()
    assert {first, joining} <= set(desk.granted) and not set(late) & set(desk.granted)
    behind = desk.ask("b")
    assert behind not in desk.granted, "it would hold up those who were there before"
    desk.release(first)
    desk.release(joining)
    desk.settle()
    assert set(late) <= set(desk.granted)
    for ticket in late:
        desk.release(ticket)
    desk.settle()
    assert behind in desk.granted and desk.loads == ["a", "b", "a", "b"]


def test_a_model_on_its_way_out_is_taken_back() -> None:
    desk = Desk("swap", 10)
    desk.load("a")
    running = desk.ask("a")
    other = desk.ask("b")
    desk.settle()
    back = desk.ask("a")
    assert back in desk.granted and desk.plan.choose() == "a" and desk.loads == ["a", "b"]
    desk.release(other)
    assert desk.closed == ["b"]
    desk.release(running)
    assert desk.closed == ["b"]


def test_keep_closes_the_least_recently_used() -> None:
    desk = Desk("keep", 9)
    for id in ("a", "b", "c"):
        desk.load(id)
    desk.release(desk.ask("a"))
    assert list(desk.plan.residents) == ["a", "b", "c"] and desk.plan.choose() == "c"
    desk.load("e")
    assert desk.closed == ["b"] and sorted(desk.plan.residents) == ["a", "c", "e"]


def test_keep_prefers_an_idle_model_to_an_older_one_in_use() -> None:
    desk = Desk("keep", 5)
    desk.load("a")
    held = desk.ask("a")
    desk.load("b")
    ticket = desk.ask("c")
    desk.settle()
    assert desk.closed == ["b"], "c needs all of it: it waits for a"
    assert ticket not in desk.granted and desk.ask("a") not in desk.granted
    desk.release(held)
    desk.settle()
    assert ticket in desk.granted and desk.closed == ["b", "a"]


def test_keep_does_not_change_who_answers_without_a_name() -> None:
    desk = Desk("keep", 10)
    desk.load("a")
    desk.release(desk.ask("b"))
    desk.settle()
    current = desk.plan.current()
    assert desk.plan.choose() == "a" and current is not None and current.id == "a"
    desk.load("b")
    assert desk.plan.choose() == "b"


def test_what_cannot_fit_is_refused_and_nothing_is_closed_for_it() -> None:
    for policy in ("swap", "keep"):
        desk = Desk(policy, 10)
        desk.load("a")
        ticket = desk.ask("d")
        desk.settle()
        assert isinstance(desk.refused[ticket], ModelLoadError) and "unloading all others would free" in str(
            desk.refused[ticket]
        )
        assert list(desk.plan.residents) == ["a"] and desk.loads == ["a"]


def test_the_model_before_comes_back_when_the_new_one_fails() -> None:
    desk = Desk("swap", 4)
    desk.load("a")
    running = desk.ask("a")
    named = desk.ask("b")
    desk.end_fetch("b")
    unnamed = desk.ask(None)
    assert unnamed.model == "b"
    desk.release(running)
    desk.end_job()
    assert desk.busy == Load("b")
    failure = ModelLoadError("b", "broken")
    desk.end_job(failure)
    assert desk.refused == {named: failure}
    desk.settle()
    assert unnamed in desk.granted and unnamed.model == "a"


def test_a_failing_default_is_not_tried_for_ever() -> None:
    desk = Desk("swap", 4)
    desk.load("a")
    desk.ask("b", leases=False)
    desk.end_fetch("b")
    desk.end_job()
    desk.end_job(ValueError())
    desk.end_fetch("a", ValueError())
    assert not desk.fetching and desk.busy is None and not desk.plan.queue
    unnamed = desk.ask(None)
    desk.end_fetch("a", ValueError("again"))
    assert str(desk.refused[unnamed]) == "again"


def test_failure_answers_everybody_and_the_next_one_tries_again() -> None:
    desk = Desk("swap", 10)
    tickets = [desk.ask("a"), desk.ask("a", leases=False)]
    error = ValueError()
    desk.end_fetch("a", error)
    assert desk.refused == dict.fromkeys(tickets, error)
    again = desk.ask("a")
    desk.settle()
    assert again in desk.granted


def test_who_gives_up_stops_nothing_for_others() -> None:
    desk = Desk("swap", 10)
    first, second = desk.ask("a"), desk.ask("a")
    desk.release(first)
    desk.settle()
    assert desk.granted == [second]


def test_who_gives_up_makes_way_at_once() -> None:
    desk = Desk("swap", 4)
    desk.load("a")
    desk.ask("a")
    swap = desk.ask("b")
    desk.end_fetch("b")
    behind = desk.ask("a")
    desk.release(swap)
    assert behind in desk.granted and desk.ask("a") in desk.granted


def test_nothing_is_loaded_for_nobody_but_what_was_asked_for_on_purpose_is() -> None:
    desk = Desk("swap", 10)
    desk.release(desk.ask("a"))
    purpose = desk.ask("b", leases=False)
    desk.release(purpose)
    desk.settle()
    assert desk.loads == ["b"]


def test_a_load_that_has_begun_goes_on_without_waiters() -> None:
    desk = Desk("swap", 10)
    ticket = desk.ask("a")
    desk.end_fetch("a")
    desk.release(ticket)
    desk.end_job()
    assert desk.granted == [] and desk.plan.residents["a"].leases == 0


def test_force_waits_for_nobody() -> None:
    desk = Desk("swap", 4)
    desk.load("a")
    running = desk.ask("a")
    waiting = desk.ask("b")
    desk.ask("c", leases=False, force=True)
    desk.end_fetch("b")
    desk.end_fetch("c")
    assert isinstance(desk.busy, Close) and desk.busy.resident.leases == 1
    desk.settle()
    assert desk.loads == ["a", "c", "b"] and waiting in desk.granted
    desk.release(running)
    assert desk.plan.residents["b"].leases == 1


@pytest.mark.parametrize("policy", ["swap", "keep", "refuse"])
def test_unload_waits_for_requests_and_those_that_come_meanwhile_wait_for_it(policy: Policy) -> None:
    desk = Desk(policy, 10)
    desk.load("a")
    running = desk.ask("a")
    desk.plan.unload("a")
    desk.go_on()
    assert desk.closed == [] and desk.plan.choose() == "a" and desk.plan.allows("a")
    late = [desk.ask("a"), desk.ask(None)]
    assert not set(late) & set(desk.granted)
    desk.release(running)
    assert desk.closed == ["a"] and desk.plan.choose() == "a" and desk.plan.allows("a")
    late.append(desk.ask(None))
    desk.settle()
    assert set(late) <= set(desk.granted) and desk.loads == ["a", "a"]


@pytest.mark.parametrize("policy", ["swap", "keep", "refuse"])
def test_nobody_is_refused_while_an_idle_model_is_closed(policy: Policy) -> None:
    desk = Desk(policy, 10)
    desk.load("a")
    desk.plan.unload("a")
    desk.go_on()
    assert desk.closed == ["a"] and desk.plan.choose() == "a" and desk.plan.allows("a")
    desk.end_job()
    assert desk.plan.choose() is None and desk.plan.allows("a") == (policy != "refuse"), "it is gone"


def test_unload_by_force() -> None:
    desk = Desk("keep", 10)
    desk.load("a")
    running = desk.ask("a")
    desk.plan.unload("a", force=True)
    desk.go_on()
    assert desk.closed == ["a"]
    desk.settle()
    desk.release(running)
    assert not desk.plan.residents and desk.plan.choose() is None


def test_refuse() -> None:
    desk = Desk("refuse", 10)
    assert not desk.plan.allows("a") and desk.plan.choose() is None
    desk.ask("a", leases=False)
    assert desk.plan.allows("a"), "it is on its way"
    desk.settle()
    assert desk.plan.allows("a") and not desk.plan.allows("b")
    held = desk.ask("a")
    desk.load("b")
    assert desk.plan.allows("b") and not desk.plan.allows("a")
    desk.release(held)
    desk.settle()
    assert list(desk.plan.residents) == ["b"]


@pytest.mark.parametrize("policy", ["swap", "keep", "refuse"])
def test_keep_alive(policy: Policy) -> None:
    desk = Desk(policy, 10)
    desk.load("a")
    held = desk.ask("a")
    assert desk.plan.expire(100.0, 5) is None
    desk.now = 99.0
    desk.release(held)
    assert desk.plan.expire(104.9, 5) == 105
    desk.go_on()
    assert desk.closed == []
    assert desk.plan.expire(105.0, 5) is None
    desk.go_on()
    assert desk.closed == ["a"]
    desk.settle()
    assert desk.plan.choose() == "a" and desk.plan.allows("a")
    back = desk.ask(None)
    desk.settle()
    assert back in desk.granted


def test_stop_answers_everybody() -> None:
    desk = Desk("swap", 10)
    desk.load("a")
    waiting = [desk.ask("b"), desk.ask("c", leases=False)]
    desk.plan.stop(error := ValueError())
    desk.go_on()
    assert desk.refused == dict.fromkeys(waiting, error) and desk.busy is None


class AnyOrder(RuleBasedStateMachine):
    """Requests, loads, unloads, failures and people who leave, in any order."""

    @initialize(policy=st.sampled_from(["swap", "keep", "refuse"]), memory=st.integers(2, 12))
    def begin(self, policy: Policy, memory: int) -> None:
        self.desk = Desk(policy, memory)
        self.asked: list[Ticket] = []
        self.left: set[Ticket] = set()
        self.forced: set[Resident] = set()

    @property
    def here(self) -> list[Ticket]:
        return [ticket for ticket in self.asked if ticket not in self.left and ticket not in self.desk.refused]

    @rule(id=st.sampled_from(sorted("abcd")) | st.none(), leases=st.booleans(), force=st.integers(0, 9))
    def ask(self, id: str | None, leases: bool, force: int) -> None:
        plan = self.desk.plan
        chosen = id or plan.choose()
        if chosen is None or (leases and not plan.allows(chosen)):
            return
        self.asked.append(self.desk.ask(id if leases else chosen, leases=leases, force=not leases and force == 0))

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.here))
        self.left.add(ticket)
        self.desk.release(ticket)

    @precondition(lambda self: self.desk.fetching)
    @rule(data=st.data(), fails=st.integers(0, 4))
    def fetched(self, data: st.DataObject, fails: int) -> None:
        self.desk.end_fetch(data.draw(st.sampled_from(self.desk.fetching)), ValueError() if fails == 0 else None)

    @precondition(lambda self: self.desk.busy)
    @rule(fails=st.integers(0, 4))
    def job_ends(self, fails: int) -> None:
        self.desk.end_job(ValueError() if fails == 0 else None)

    @rule(id=st.sampled_from("abc"), force=st.integers(0, 4))
    def unload(self, id: str, force: int) -> None:
        self.desk.plan.unload(id, force=force == 0)
        self.desk.go_on()

    @rule(keep_alive=st.integers(0, 20))
    def time_passes(self, keep_alive: int) -> None:
        self.desk.now += 3
        self.desk.plan.expire(self.desk.now, keep_alive)
        self.desk.go_on()

    @invariant()
    def leases_are_counted(self) -> None:
        if not hasattr(self, "desk"):
            return
        for resident in self.desk.plan.residents.values():
            holders = [t for t in self.desk.granted if t.resident is resident and t not in self.left]
            assert resident.leases == len(holders)

    @invariant()
    def nothing_to_do_is_left_undone(self) -> None:
        """With no job, no fetch and nobody using a model, nobody waits."""
        if hasattr(self, "desk") and not (self.desk.busy or self.desk.fetching):
            used = any(resident.leases for resident in self.desk.plan.residents.values())
            assert used or not self.desk.plan.queue

    @invariant()
    def one_model_takes_requests_unless_several_are_kept(self) -> None:
        if hasattr(self, "desk") and self.desk.plan.policy != "keep":
            staying = [r for r in self.desk.plan.residents.values() if not (r.leaving or r.unloading)]
            assert len(staying) <= 1

    def teardown(self) -> None:
        """When everybody has what they waited for and goes, everybody was answered."""
        if not hasattr(self, "desk"):
            return
        for _ in range(10 * len(self.asked) + 10):
            self.desk.settle()
            holder = next((t for t in self.here if t in self.desk.granted), None)
            if holder is None:
                break
            self.left.add(holder)
            self.desk.release(holder)
        assert self.here == [] and not self.desk.plan.queue
        assert all(not resident.leases for resident in self.desk.plan.residents.values())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_memory_adds_up() -> None:
    assert MemoryUse(1, 2) + MemoryUse(3, 4) == MemoryUse(4, 6)
    assert MemoryUse(1, 2).fits(MemoryUse(1, 2)) and not MemoryUse(1, 3).fits(MemoryUse(9, 2))
    assert dataclasses.asdict(MemoryUse()) == {"ram": 0, "vram": 0}
