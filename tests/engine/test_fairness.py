"""Turns between callers: whatever one of them asks, the others wait for little more than they would alone."""

from __future__ import annotations

import contextlib
import statistics
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locallab.engine.caller import Caller, Places
from locallab.engine.fairness import QUANTUM
from locallab.errors import Overloaded
from locallab.settings import Layout
from tests.support import tiny_gguf
from tests.support.fake_llama import answer
from tests.support.stepped_engine import SteppedEngine
from tests.support.worker_rig import Rig

HOG, ANN, BOB = Caller(id="key:hog"), Caller(id="key:ann"), Caller(id="key:bob")
PRO = Caller(id="key:pro", weight=2)
AMPLE = 1 << 20
each_layout = pytest.mark.parametrize("layout", ["unified", "streams"])


def rig(layout: Layout = "unified", *, parallel: int = 16, context: int = 512, **options: object) -> Rig:
    cells = context * (parallel if layout == "streams" else 8)
    defaults = {"slots": parallel + 8, "batch": 512, "chunk": 64, "host_bytes": AMPLE, "step_cost": 0.02}
    return Rig(layout=layout, cells=cells, parallel=parallel, **{**defaults, **options})  # type: ignore[arg-type]


def prompt(seed: int, length: int) -> list[int]:
    return [1 + (seed * 7 + i * i + seed * i) % 60 for i in range(length)]


def first_token(rig: Rig, length: int, seed: int, caller: Caller = ANN) -> float:
    """Return the seconds until a prompt's first token, by the rig's costs: a millisecond for a prompt token, and what decoding
    takes. The request is cancelled then."""
    id = rig.submit(prompt(seed, length), 8, caller=caller)
    seconds = 0.0
    for _ in range(400):
        seconds += step(rig)
        if rig.tokens(id):
            rig.cancel(id)
            return seconds
    raise AssertionError("starved")


def step(rig: Rig) -> float:
    """Run a step, and return how long it would take."""
    took = []
    plan = rig.scheduler.plan

    def planned():
        found = plan()
        for batch in found.batches:
            answers = sum(chunk.count for chunk in batch if chunk.is_answer)
            took.append(0.001 * sum(c.count for c in batch if not c.is_answer) + 0.004 * answers + 0.004 * bool(answers))
        return found

    rig.scheduler.plan = planned  # type: ignore[method-assign]
    rig.step()
    rig.worker._hand_out()
    rig.scheduler.plan = plan  # type: ignore[method-assign]
    return sum(took)


def p95(figures: list[float]) -> float:
    return statistics.quantiles(figures, n=20)[-1]


@each_layout
@pytest.mark.parametrize("length", [20, 120, 400])
def test_beside_320_streams_a_first_token_takes_at_most_three_times_as_long_and_a_step(layout: Layout, length: int) -> None:
    made = rig(layout, step_cost=0.02)
    alone = [first_token(made, length, seed) for seed in range(20)]
    steps = []
    for seed in range(320):
        made.submit(prompt(1000 + seed, 30 + seed % 50), 200, caller=HOG)
    steps = [step(made) for _ in range(40)]
    beside = [first_token(made, length, 100 + seed) for seed in range(20)]
    assert p95(beside) <= 3 * p95(alone) + max(steps)


@each_layout
def test_three_requests_for_128_answers_each_keep_nobody_waiting(layout: Layout) -> None:
    made = rig(layout)
    for seed in range(3):
        for _ in range(128):
            made.submit(prompt(seed, 40), 100, caller=HOG)
    for _ in range(30):
        step(made)
    assert first_token(made, 40, 9) < 1


def test_a_waiting_caller_gets_its_share_of_the_places_and_no_more() -> None:
    made = rig(parallel=8)
    for seed in range(40):
        made.submit(prompt(seed, 20), 100, caller=HOG)
    for _ in range(5):
        step(made)
    for seed in range(40):
        made.submit(prompt(100 + seed, 20), 100, caller=ANN)
    for _ in range(20):
        step(made)
    assert Counter(s.caller.id for s in made.scheduler.running) == {HOG.id: 4, ANN.id: 4}


def test_places_go_by_weight() -> None:
    made = rig(parallel=9)
    for seed in range(40):
        made.submit(prompt(seed, 20), 100, caller=HOG)
        made.submit(prompt(100 + seed, 20), 100, caller=PRO)
    for _ in range(5):
        step(made)
    assert Counter(s.caller.id for s in made.scheduler.running) == {HOG.id: 3, PRO.id: 6}


def test_with_a_single_place_callers_take_turns() -> None:
    made = rig(parallel=1)
    made.submit(prompt(1, 20), 400, caller=HOG)
    for _ in range(3):
        step(made)
    made.submit(prompt(2, 20), 400, caller=HOG)
    id = made.submit(prompt(3, 20), 4, caller=ANN)
    for _ in range(40):
        step(made)
    assert made.last_or_none(id)


@pytest.mark.parametrize("weight", [1, 2])
def test_prompts_share_the_computed_tokens_by_weight(weight: int) -> None:
    made = rig(context=8192, parallel=4)
    other = Caller(id="key:other", weight=weight)
    for seed in range(2):
        made.submit(prompt(seed, 6000), 1, caller=HOG)
        made.submit(prompt(9 + seed, 6000), 1, caller=other)
    steps = 0
    while sum(s.computed for s in made.scheduler.running) < 6000:
        step(made)
        steps += 1
    got = Counter({HOG.id: 0, other.id: 0})
    for sequence in made.scheduler.running:
        got[sequence.caller.id] += sequence.computed
    assert abs(got[other.id] - weight * got[HOG.id]) <= (1 + weight) * 2 * QUANTUM * weight


def test_a_long_prompt_that_needs_room_gets_it_from_who_has_most() -> None:
    made = rig(context=128, parallel=8, cache_cells=0)
    for seed in range(40):
        made.submit(prompt(seed, 80), 40, caller=HOG)
    for _ in range(10):
        step(made)
    id = made.submit(prompt(77, 300), 4, caller=ANN)
    for _ in range(30):
        step(made)
    assert made.tokens(id)


def test_the_oldest_is_not_preempted_however_much_it_takes() -> None:
    made = rig(context=64, parallel=8, cache_cells=0)
    long = made.submit(prompt(1, 300), 60, caller=HOG)
    for seed in range(20):
        made.submit(prompt(50 + seed, 20), 60, caller=ANN)
    made.drain(4000)
    assert made.tokens(long) == answer(prompt(1, 300), 60)
    assert long not in made.put_back


def test_urgent_requests_go_ahead_of_their_caller_s_others_alone() -> None:
    made = rig(parallel=2, context=1024, chunk=16)
    for seed in range(10):
        made.submit(prompt(seed, 100), 8, caller=HOG, urgent=True)
    step(made)
    id = made.submit(prompt(50, 60), 4, caller=ANN)
    for _ in range(12):
        step(made)
    assert made.tokens(id), "what is urgent to one caller keeps another waiting"
    made.drain()


def test_answers_of_a_caller_take_turns_while_others_prompts_are_computed() -> None:
    """A hundred milliseconds are its share of a step, and sixteen answers take 68."""
    made = rig("streams", parallel=32, context=256, step_cost=0.068, chunk=64)
    ids = [made.submit(prompt(seed, 8), 200, caller=HOG) for seed in range(24)]
    for _ in range(12):
        step(made)
    made.submit(prompt(99, 240), 4, caller=ANN)
    before = {id: len(made.tokens(id)) for id in ids}
    for _ in range(3):
        step(made)
    gained = [len(made.tokens(id)) - before[id] for id in ids]
    assert 0 < sum(gained) < 3 * 20
    assert max(gained) - min(gained) <= 1
    made.drain()


callers = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 120), st.integers(1, 40), st.booleans()),
    min_size=2,
    max_size=5,
)


@given(
    callers=callers,
    layout=st.sampled_from(["unified", "streams"]),
    parallel=st.integers(1, 8),
    host=st.sampled_from([0, AMPLE]),
    tile=st.sampled_from([0, 16]),
)
@settings(max_examples=40, deadline=None)
def test_no_caller_starves(callers, layout, parallel, host, tile) -> None:
    """The first caller keeps coming; every request of the others ends, with the tokens it would get alone."""
    made = rig(layout, parallel=parallel, context=256, host_bytes=host, tile=tile, chunk=16)
    hog, asked = Caller(id="0", weight=callers[0][0]), []
    for number, (weight, count, length, wanted, urgent) in enumerate(callers[1:], 1):
        who = Caller(id=str(number), weight=weight)
        for i in range(min(count, 6)):
            text = prompt(number * 50 + i, length)
            asked.append((made.submit(text, wanted, caller=who, urgent=urgent), text, wanted))
    for seed in range(3000):
        while sum(s.caller is hog for s in made.scheduler.waiting) < 10:
            made.submit(prompt(seed, callers[0][2]), callers[0][3], caller=hog, urgent=callers[0][4])
        made.step()
        made.worker._hand_out()
        if all(made.last_or_none(id) for id, _, _ in asked):
            break
    for id, text, wanted in asked:
        assert made.last_or_none(id), "starved"
        assert made.tokens(id) == answer(text, wanted)


def test_one_caller_s_order_is_as_if_there_were_no_callers() -> None:
    orders = []
    for who in (Caller(), HOG):
        made = rig(parallel=4)
        for seed in range(12):
            made.submit(prompt(seed, 20 + 13 * seed % 70), 9, caller=who, urgent=seed % 5 == 0)
        made.drain()
        orders.append({id: [*chunks] for id, chunks in made.chunks.items()})
    assert orders[0] == orders[1]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
def test_places_count_who_has_less(changes: list[tuple[int, bool]]) -> None:
    places, counts = Places(), Counter[int]()
    who = [Caller(id=str(n), weight=1 + n % 2) for n in range(4)]
    for n, enters in changes:
        if enters:
            places.enter(who[n])
            counts[n] += 1
        elif counts[n]:
            places.leave(who[n])
            counts[n] -= 1
        assert places.total == counts.total()
        for n in range(4):
            mine = (counts[n] + 1) / who[n].weight
            assert places.has_less(who[n]) == any(counts[o] / who[o].weight > mine for o in range(4) if o != n)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama")


def test_a_full_queue_has_a_place_for_who_has_less(model: Path) -> None:
    with contextlib.closing(SteppedEngine(model, parallel=2, queue=4)) as engine:
        hog = [engine.ask([20 + n], 40, caller=HOG) for n in range(6)]
        for _ in range(3):
            engine.step()
        with pytest.raises(Overloaded):
            engine.ask([30], 2, caller=HOG)
        ann = [engine.ask([30 + n], 2, caller=ANN) for n in range(3)]
        engine.step()
        with pytest.raises(Overloaded):
            engine.ask([40], 2, caller=ANN)
        engine.drain()
        assert [each.last.finish_reason for each in ann] == ["length"] * 3
        assert [each.last.finish_reason for each in hog] == ["length"] * 3 + ["error"] * 3
        assert all(isinstance(each.last.error, Overloaded) for each in hog[3:])
        assert engine._open.total == 0


def test_what_has_begun_does_not_leave_a_full_queue(model: Path) -> None:
    """One of a crowd of single requests comes last, and all of them have as much as it: it is refused itself."""
    with contextlib.closing(SteppedEngine(model, parallel=2, queue=2)) as engine:
        hog = [engine.ask([20 + n], 40, caller=HOG) for n in range(2)]
        for _ in range(3):
            engine.step()
        singles = [engine.ask([30 + n], 2, caller=Caller(id=str(n))) for n in range(3)]
        engine.drain()
        assert [each.last.finish_reason for each in (*hog, *singles)] == ["length"] * 4 + ["error"]
