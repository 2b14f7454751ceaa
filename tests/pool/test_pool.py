from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from locallab.engine.request import SamplingParams, TokenEvent
from locallab.errors import ConfigError, EngineClosed, ModelLoadError, ModelNotLoaded, SourceError, UnknownModel
from locallab.pool import Lease, MemoryUse, Pool, PoolStats
from locallab.pool.demand import Policy
from locallab.pool.memory import Suited
from locallab.settings import EngineSettings
from tests.support.fake_engine import FakeEngine
from tests.support.fake_pool import Made, making, name_of, soon
from tests.support.wait import PATIENCE, until

NOT_GGUF = r"broken-3b\.gguf: not a GGUF file"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with making(tmp_path) as made:
        yield made


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Made]:
    """Of a machine with memory for one model."""
    with making(tmp_path, room=1) as made:
        yield made


def test_nothing_is_loaded_at_first(made: Made) -> None:
    assert made.pool.current is None and made.pool.default is None and made.pool.loaded == []
    assert made.pool.status("tiny:1b") == "unloaded" and made.pool.get("tiny:1b") is None
    with pytest.raises(EngineClosed, match="no model is loaded; POST /models/load"):
        made.pool.lease(None, strict=True)


def test_load(made: Made) -> None:
    loaded = made.pool.load_now("FIRST")
    assert loaded.spec.id == "tiny:1b" and made.pool.current is loaded and made.pool.loaded == [loaded]
    assert made.pool.status("tiny:1b") == "ready" and made.pool.status("other:2b") == "unloaded"
    assert made.pool.load_now("tiny:1b") is loaded and len(made.engines) == 1
    assert made.pool.get("first") is loaded and loaded.memory == MemoryUse(ram=1)


def test_lease_by_every_name(made: Made) -> None:
    loaded = made.pool.load_now("tiny:1b")

    async def scenario() -> None:
        for name in (None, "", "tiny:1b", "first", "TINY:1B"):
            async with made.pool.lease(name, strict=True) as leased:
                assert leased is loaded
        async with made.pool.lease("gpt-4o", strict=False) as leased:
            assert leased is loaded

    asyncio.run(scenario())
    with pytest.raises(UnknownModel, match="unknown model 'tiny:1'; did you mean tiny:1b"):
        made.pool.lease("tiny:1", strict=True)


def test_refuse(tmp_path: Path) -> None:
    with making(tmp_path, on_demand="refuse") as made:
        made.pool.load_now("tiny:1b")
        for strict in (True, False):
            with pytest.raises(ModelNotLoaded, match=r"'other:2b' is not loaded; POST /models/load loads it"):
                made.pool.lease("other:2b", strict=strict)
        made.pool.load_now("other:2b")
        assert asyncio.run(made.answer("other:2b")) == "other:2b"
        until(lambda: made.engine("tiny").closed_with == 0.0)


@pytest.mark.parametrize("room", [1, 10])
def test_a_request_loads_the_model_it_names(tmp_path: Path, room: int) -> None:
    with making(tmp_path, room=room) as made:
        made.pool.load_now("tiny:1b")

        async def scenario() -> list[str]:
            return await asyncio.gather(*(made.answer("other:2b") for _ in range(10)))

        assert asyncio.run(scenario()) == ["other:2b"] * 10
        assert len(made.engines) == 2 and name_of(made.pool.current) == "other:2b"
        until(lambda: made.pool.status("tiny:1b") == "unloaded")


def test_a_swap_cuts_nothing(small: Made) -> None:
    small.pool.load_now("tiny:1b")
    go = threading.Event()
    small.engine("tiny").script = lambda prompt, params: [go, b"done"]

    async def scenario() -> None:
        running = asyncio.ensure_future(small.answer("tiny:1b"))
        await soon(lambda: small.engine("tiny").stats().running == 1)
        swap = asyncio.ensure_future(small.answer("other:2b"))
        await soon(lambda: small.pool._plan._making_room == {"tiny:1b"})
        late = asyncio.ensure_future(small.answer(None))
        await asyncio.sleep(0)
        assert small.engines[0].closed_with is None and not (swap.done() or late.done())
        go.set()
        assert await running == "tiny:1b"
        assert await swap == "other:2b" and await late == "other:2b"

    asyncio.run(scenario())
    assert len(small.engines) == 2 and small.engines[0].closed_with == 0.0


def test_force_cuts(tmp_path: Path) -> None:
    with making(tmp_path, room=1) as small:
        small.pool.load_now("tiny:1b")
        small.engine("tiny").script = lambda prompt, params: [threading.Event()]
        ended: list[TokenEvent] = []

        async def scenario() -> None:
            async with small.pool.lease(None, strict=True) as loaded:
                loaded.engine.submit([1], SamplingParams(), ended.append)
                assert name_of(await small.pool.load("other:2b", force=True)) == "other:2b"

        asyncio.run(scenario())
        assert [event.finish_reason for event in ended if not event.cache] == ["cancelled"]


def test_force_gives_the_grace(tmp_path: Path) -> None:
    with making(tmp_path, room=1, grace=7.0) as small:
        small.pool.load_now("tiny:1b")

        async def scenario() -> None:
            async with small.pool.lease(None, strict=True):
                await small.pool.load("other:2b", force=True)

        asyncio.run(scenario())
        small.pool.load_now("tiny:1b")
        assert [engine.closed_with for engine in small.engines] == [7.0, 0.0, None]


def test_keep(tmp_path: Path) -> None:
    with making(tmp_path, names=("a:1", "b:1", "c:1"), room=2, on_demand="keep") as made:
        made.pool.load_now("a:1")

        async def scenario() -> None:
            assert [await made.answer(name) for name in ("b:1", None, "a:1", "b:1")] == ["b:1", "a:1", "a:1", "b:1"]
            assert [each.spec.id for each in made.pool.loaded] == ["b:1", "a:1"] and name_of(made.pool.current) == "a:1"
            assert await made.answer("c:1") == "c:1"

        asyncio.run(scenario())
        assert sorted(each.spec.id for each in made.pool.loaded) == ["b:1", "c:1"]
        assert made.engine("a").closed_with == 0.0


def test_failed_load_leaves_the_old_one(made: Made) -> None:
    loaded = made.pool.load_now("tiny:1b")
    with pytest.raises(ModelLoadError, match=NOT_GGUF):
        made.pool.load_now("broken:3b")
    assert made.pool.current is loaded and made.engines[0].closed_with is None
    assert made.pool.status("broken:3b") == "error" and "not a GGUF file" in (made.pool.error("broken:3b") or "")
    assert made.pool.error("tiny:1b") is None


def test_failed_load_brings_the_old_one_back(small: Made) -> None:
    small.pool.load_now("tiny:1b")
    with pytest.raises(ModelLoadError, match=NOT_GGUF):
        small.pool.load_now("broken:3b")
    until(lambda: small.pool.status("tiny:1b") == "ready")
    assert asyncio.run(small.answer(None)) == "tiny:1b"
    assert small.pool.stats().loads == 2 and len(small.engines) == 2


def test_failed_load_answers_every_waiter_and_the_next_one_tries_again(tmp_path: Path) -> None:
    failures = [SourceError("no network")]
    begun, go = threading.Event(), threading.Event()

    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        begun.set()
        go.wait(PATIENCE)
        if failures:
            raise failures.pop()
        return tmp_path / "tiny-1b.gguf"

    with making(tmp_path, fetch=fetch) as made:

        async def scenario() -> None:
            waiting = [asyncio.ensure_future(made.answer("tiny:1b")) for _ in range(5)]
            waiting.append(asyncio.ensure_future(made.pool.load("first")))  # type: ignore[arg-type]
            await asyncio.to_thread(begun.wait)
            go.set()
            for error in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(error, SourceError) and str(error) == "no network"
            assert made.pool.status("tiny:1b") == "error" and made.pool.error("first") == "no network"
            assert await made.answer("tiny:1b") == "tiny:1b"

        asyncio.run(scenario())
        assert made.pool.status("tiny:1b") == "ready" and made.pool.error("tiny:1b") is None


def test_unusable_template_is_a_failed_load(made: Made) -> None:
    made.template = "{% for %}"
    with pytest.raises(ModelLoadError, match=r"tiny-1b\.gguf: the model's chat template cannot be used"):
        made.pool.load_now("tiny:1b")
    assert made.engines[0].closed_with == 0.0 and made.pool.current is None


def test_who_gives_up_stops_nothing_for_others(made: Made) -> None:
    gate = made.hold("tiny")

    async def scenario() -> None:
        leaving = asyncio.ensure_future(made.answer("tiny:1b"))
        staying = asyncio.ensure_future(made.answer("tiny:1b"))
        await soon(lambda: made.loading._value == 0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.set()
        assert await staying == "tiny:1b"

    asyncio.run(scenario())
    assert len(made.engines) == 1


@pytest.mark.parametrize("granted", [False, True])
def test_a_cancelled_waiter_leaves_no_lease(small: Made, granted: bool) -> None:
    """Also when it is cancelled between the end of the load and hearing of it."""
    gate = small.hold("tiny")

    async def scenario() -> None:
        waiting = asyncio.ensure_future(small.answer("tiny:1b"))
        await soon(lambda: small.loading._value == 0)
        if granted:
            gate.set()
            until(lambda: small.pool.status("tiny:1b") == "ready")  # holds up the loop: the task cannot hear
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(scenario())
    gate.set()
    small.pool.load_now("other:2b")
    assert small.engine("tiny").closed_with == 0.0


def test_a_failure_that_nobody_waits_for_any_more_is_not_logged_as_forgotten(made: Made) -> None:
    gate = made.hold("broken")
    forgotten: list[Any] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: forgotten.append(context))
        lease = made.pool.lease("broken:3b", strict=True)
        waiting = [asyncio.ensure_future(each) for each in (lease.wait(), made.pool.load("broken:3b"))]
        await soon(lambda: made.loading._value == 0)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
        gate.set()
        await soon(lambda: made.pool.status("broken:3b") == "error")
        lease.release()

    asyncio.run(scenario())
    gc.collect()
    assert forgotten == []


def test_a_cancelled_caller_does_not_stop_the_load(made: Made) -> None:
    gate = made.hold("tiny")

    async def scenario() -> None:
        load = asyncio.ensure_future(made.pool.load("tiny:1b"))
        await soon(lambda: made.loading._value == 0)
        load.cancel()
        gate.set()
        assert (await made.pool.load("tiny:1b")).spec.id == "tiny:1b"

    asyncio.run(scenario())
    assert len(made.engines) == 1


def test_lease_can_be_released_twice_and_unasked(made: Made) -> None:
    made.pool.load_now("tiny:1b")
    lease = made.pool.lease(None, strict=True)
    assert lease.ready and isinstance(lease, Lease)
    lease.release()
    lease.release()
    made.pool.load_now("other:2b")
    until(lambda: made.engine("tiny").closed_with == 0.0)


def test_unload(made: Made) -> None:
    made.pool.load_now("tiny:1b")
    asyncio.run(made.pool.unload("first"))
    assert made.pool.status("tiny:1b") == "unloaded" and made.engines[0].closed_with == 0.0
    assert made.pool.current is None and made.pool.default is None
    with pytest.raises(EngineClosed, match="no model is loaded"):
        made.pool.lease(None, strict=True)
    asyncio.run(made.pool.unload("tiny:1b"))
    with pytest.raises(UnknownModel):
        asyncio.run(made.pool.unload("nothing"))
    assert asyncio.run(made.answer("tiny:1b")) == "tiny:1b"


@pytest.mark.parametrize("policy", ["swap", "keep", "refuse"])
@pytest.mark.parametrize("name", ["tiny:1b", None])
def test_what_comes_while_an_unload_waits_is_served(tmp_path: Path, policy: Policy, name: str | None) -> None:
    with making(tmp_path, on_demand=policy) as made:
        made.pool.load_now("tiny:1b")

        async def scenario() -> None:
            lease = made.pool.lease(None, strict=True)
            unload = asyncio.ensure_future(made.pool.unload("tiny:1b"))
            await soon(lambda: made.pool._plan.residents["tiny:1b"].unloading)
            late = [asyncio.ensure_future(made.answer(name)) for _ in range(3)]
            await asyncio.sleep(0)
            lease.release()
            await unload
            assert await asyncio.gather(*late) == ["tiny:1b"] * 3

        asyncio.run(scenario())
        assert len(made.engines) == 2


@pytest.mark.parametrize("force", [False, True])
def test_unload_while_in_use(made: Made, force: bool) -> None:
    made.pool.load_now("tiny:1b")

    async def scenario() -> None:
        lease = made.pool.lease(None, strict=True)
        unload = asyncio.ensure_future(made.pool.unload("tiny:1b", force=force))
        if force:
            await unload
            assert made.engines[0].closed_with == 0.0
            lease.release()
            return
        await soon(lambda: made.pool._plan.residents["tiny:1b"].unloading)
        again = made.pool.lease("tiny:1b", strict=True)
        assert not again.ready and made.engines[0].closed_with is None
        lease.release()
        await unload
        assert name_of(await again.wait()) == "tiny:1b"
        again.release()

    asyncio.run(scenario())
    assert len(made.engines) == (1 if force else 2)


def test_unload_waits_for_a_load(made: Made) -> None:
    gate = made.hold("tiny")

    async def scenario() -> None:
        load = asyncio.ensure_future(made.pool.load("tiny:1b"))
        await soon(lambda: made.loading._value == 0)
        unload = asyncio.ensure_future(made.pool.unload("tiny:1b"))
        await asyncio.sleep(0)
        assert not unload.done()
        gate.set()
        await load
        await unload

    asyncio.run(scenario())
    assert made.pool.status("tiny:1b") == "unloaded" and made.engines[0].closed_with == 0.0


@pytest.mark.parametrize("keep_alive", [0, 0.02])
def test_keep_alive(tmp_path: Path, keep_alive: float) -> None:
    with making(tmp_path, keep_alive=keep_alive, on_demand="refuse") as made:
        made.pool.load_now("tiny:1b")
        for count in (1, 2):
            until(lambda: made.pool.current is None)
            default = made.pool.default
            assert default is not None and default.id == "tiny:1b" and len(made.engines) == count
            assert asyncio.run(made.answer(None)) == "tiny:1b"
        assert made.pool.stats().failures == 0


def test_keep_alive_spares_what_is_used(tmp_path: Path) -> None:
    with making(tmp_path, keep_alive=0) as made:

        async def scenario() -> None:
            async with made.pool.lease("tiny:1b", strict=True):
                assert made.pool._timer is None
                assert await made.answer("tiny:1b") == "tiny:1b"
                assert made.engines[0].closed_with is None

        asyncio.run(scenario())
        until(lambda: made.engines[0].closed_with == 0.0)


def test_one_timer_at_most(tmp_path: Path) -> None:
    with making(tmp_path, keep_alive=1000) as made:
        made.pool.load_now("tiny:1b")
        timer = made.pool._timer
        asyncio.run(made.answer(None))
        assert timer is not None and made.pool._timer is timer
        made.pool.close()
        timer.join(PATIENCE)
        assert not timer.is_alive()


def test_stats(made: Made) -> None:
    assert made.pool.stats() == PoolStats()
    made.pool.load_now("tiny:1b")
    made.pool.load_now("other:2b")
    with pytest.raises(ModelLoadError):
        made.pool.load_now("broken:3b")
    until(lambda: made.pool.stats().unloads == 1)
    stats = made.pool.stats()
    assert (stats.loads, stats.failures, stats.loading) == (2, 1, 0) and stats.load_seconds > 0


def test_on_loaded(made: Made) -> None:
    seen: list[str] = []
    made.pool.load_now("tiny:1b")
    made.pool.on_loaded(lambda loaded: seen.append(loaded.spec.id))
    made.pool.load_now("other:2b")
    assert seen == ["tiny:1b", "other:2b"]


def test_unknown_model(made: Made) -> None:
    with pytest.raises(UnknownModel, match="did you mean tiny:1b"):
        made.pool.load_now("tiny:1")


class Slow:
    """A fetch that reports progress until it is let go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = threading.Event()
        self.go = threading.Event()

    def __call__(self, spec: Any, store: Any, progress: Any) -> Path:
        self.started.set()
        while not self.go.wait(0.001):
            progress(1, 2)
        return self.path


def test_progress_is_passed_on(tmp_path: Path) -> None:
    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        progress(1, 2)
        return tmp_path / "tiny-1b.gguf"

    told: list[Any] = []
    with making(tmp_path, fetch=fetch) as made:
        made.pool.load_now("tiny:1b", lambda done, total: told.append((done, total)))
        made.pool.load_now("other:2b")
    assert told == [(1, 2)]


def test_settings_in_order(tmp_path: Path) -> None:
    layers = [("the environment", {"threads": 1, "batch": "64"}), ("a flag", {"threads": 2})]
    with making(tmp_path, layers) as made:
        made.pool.load_now("tiny:1b")
        assert made.engines[0].settings == EngineSettings(context=512, threads=2, batch=64)


def test_wrong_setting(tmp_path: Path) -> None:
    with making(tmp_path, [("a flag", {"threats": 2})]) as made, pytest.raises(ConfigError, match="unknown setting 'threats'"):
        made.pool.load_now("tiny:1b")


def test_a_fetch_disturbs_nobody(tmp_path: Path) -> None:
    slow = Slow(tmp_path / "x.gguf")
    with making(tmp_path, room=1) as made:
        made.pool.load_now("tiny:1b")
        made.pool._jobs._fetch = slow

        async def scenario() -> None:
            load = asyncio.ensure_future(made.pool.load("other:2b"))
            await asyncio.to_thread(slow.started.wait)
            assert made.pool.status("other:2b") == "loading" and made.pool.stats().loading == 1
            assert [await made.answer(name) for name in (None, "tiny:1b")] == ["tiny:1b"] * 2
            load.cancel()

        asyncio.run(scenario())


def test_close_stops_a_fetch_and_answers_everybody(tmp_path: Path) -> None:
    slow = Slow(tmp_path / "x.gguf")
    with making(tmp_path, fetch=slow) as made:

        async def scenario() -> None:
            waiting = [made.pool.load("tiny:1b"), made.answer("tiny:1b"), made.answer("other:2b")]
            tasks = [asyncio.ensure_future(each) for each in waiting]
            await asyncio.to_thread(slow.started.wait)
            await asyncio.to_thread(made.pool.close)
            for task in tasks:
                with pytest.raises(EngineClosed, match="stopping"):
                    await task

        asyncio.run(scenario())
        assert made.engines == []


def test_close_during_the_load_itself(made: Made) -> None:
    gate = made.hold("tiny")

    async def scenario() -> None:
        load = asyncio.ensure_future(made.pool.load("tiny:1b"))
        await soon(lambda: made.loading._value == 0)
        closing = asyncio.ensure_future(asyncio.to_thread(made.pool.close))
        with pytest.raises(EngineClosed):
            await load
        gate.set()
        await closing

    asyncio.run(scenario())
    assert made.engines[0].closed_with == 0.0 and made.pool.current is None


def test_close_ends_all_models_at_once_and_cuts_short_a_closing(tmp_path: Path) -> None:
    with making(tmp_path, on_demand="keep", grace=PATIENCE) as made:
        forever = threading.Event()
        ended: list[TokenEvent] = []

        async def scenario() -> None:
            for name in ("tiny:1b", "other:2b"):
                lease = made.pool.lease(name, strict=True)
                loaded = await lease.wait()
                made.engines[-1].script = lambda prompt, params: [forever]
                loaded.engine.submit([1], SamplingParams(), ended.append)
            unload = asyncio.ensure_future(made.pool.unload("tiny:1b", force=True))
            await soon(lambda: made.engines[0].closed_with == PATIENCE)
            await asyncio.to_thread(made.pool.close)
            with pytest.raises(EngineClosed, match="stopping"):
                await unload

        asyncio.run(scenario())
        assert [event.finish_reason for event in ended if not event.cache] == ["cancelled"] * 2


def test_closed(made: Made) -> None:
    made.pool.load_now("tiny:1b")
    lease = made.pool.lease(None, strict=True)
    made.pool.close()
    made.pool.close()
    lease.release()
    for call in (lambda: made.pool.load_now("tiny:1b"), lambda: made.pool.lease(None, strict=False)):
        with pytest.raises(EngineClosed, match="stopping"):
            call()
    with pytest.raises(EngineClosed, match="stopping"):
        asyncio.run(made.pool.unload("tiny:1b"))


def collected(pool: Pool) -> tuple[list[TokenEvent], set[str]]:
    events: list[TokenEvent] = []
    threads: set[str] = set()
    ended = threading.Event()

    def listen(event: TokenEvent) -> None:
        events.append(event)
        threads.add(threading.current_thread().name)
        if event.finish_reason:
            ended.set()

    assert pool.current is not None
    pool.current.engine.submit([1], SamplingParams(), listen)
    assert ended.wait(10)
    return events, threads


def test_events_come_in_the_event_loop_once_it_is_known(made: Made) -> None:
    made.pool.load_now("tiny:1b")
    assert collected(made.pool)[1] == {"fake engine"}

    async def scenario() -> tuple[list[TokenEvent], set[str]]:
        made.pool.start(asyncio.get_running_loop())
        return await asyncio.to_thread(collected, made.pool)

    events, threads = asyncio.run(scenario())
    assert threads == {threading.current_thread().name} and events[-1].finish_reason == "stop"


def test_events_after_the_event_loop_has_ended_are_dropped(made: Made) -> None:
    made.pool.load_now("tiny:1b")

    async def scenario() -> None:
        made.pool.start(asyncio.get_running_loop())

    asyncio.run(scenario())
    assert made.pool.current is not None
    made.pool.current.engine.submit([1], SamplingParams(), pytest.fail)
    made.pool.close(5.0)


class Watched(FakeEngine):
    """Notices when it is closed while somebody uses it."""

    users = 0

    def close(self, grace: float = 0.0) -> None:
        assert self.users == 0, "closed while it is used"
        super().close(grace)


@pytest.mark.parametrize("policy", ["swap", "keep"])
@pytest.mark.parametrize("room", [1, 2, 10])
@pytest.mark.parametrize("seed", range(3))
def test_any_crowd(tmp_path: Path, policy: str, room: int, seed: int) -> None:
    """Clients of three models and a broken one, some of which leave; loads and unloads among them."""
    names = ("a:1", "b:1", "c:1", "broken:1")
    dice = random.Random(seed)
    told: Counter[str] = Counter()
    options: dict[str, Any] = {"names": names, "room": room, "on_demand": policy, "keep_alive": dice.choice([-1, 0])}
    with making(tmp_path, **options) as made:

        def make(suited: Suited) -> Any:
            assert made.loading.acquire(blocking=False), "two loads at once"
            try:
                made.engines.append(Watched(suited.need.path, suited.settings, made.pool._post))
                return made.engines[-1]
            finally:
                made.loading.release()

        made.pool._jobs._engine = make

        async def use(name: str | None, turns: int) -> None:
            async with made.pool.lease(name, strict=True) as loaded:
                engine: Any = loaded.engine
                engine.users += 1
                try:
                    assert name in (None, loaded.spec.id) and engine.closed_with is None
                    for _ in range(turns):
                        await asyncio.sleep(0)
                finally:
                    engine.users -= 1
            told["served"] += 1

        async def client(name: str | None, turns: int, leaves: bool) -> None:
            task = asyncio.ensure_future(use(name, turns))
            if leaves:
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                told["left"] += 1
            except ModelLoadError:
                assert name in ("broken:1", None)
                told["failed"] += 1
            except EngineClosed as error:
                assert name is None and "no model is loaded" in str(error)
                told["without"] += 1

        async def scenario() -> None:
            crowd = []
            for _ in range(120):
                name = dice.choice([*names, None])
                kind = dice.random()
                if kind < 0.05:
                    crowd.append(asyncio.ensure_future(made.pool.unload(dice.choice(names))))
                elif kind < 0.1:
                    crowd.append(asyncio.ensure_future(made.pool.load(dice.choice(names[:3]))))  # type: ignore[arg-type]
                else:
                    crowd.append(asyncio.ensure_future(client(name, dice.randrange(6), kind > 0.8)))
                if dice.random() < 0.3:
                    await asyncio.sleep(0.0005)
            await asyncio.wait_for(asyncio.gather(*crowd), PATIENCE)
            told["clients"] = sum(told.values())

        asyncio.run(scenario())
        assert told["served"] > 20
        until(lambda: made.pool._plan.job is None and made.pool.stats().loading == 0)
        assert sum(engine.closed_with is None for engine in made.engines) == len(made.pool.loaded) <= max(1, room)
        if policy == "swap":
            assert len(made.pool.loaded) <= 1
