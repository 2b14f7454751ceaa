from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from locallab.engine.request import SamplingParams, TokenEvent
from locallab.errors import ConfigError, EngineClosed, ModelLoadError, SourceError, UnknownModel
from locallab.models.store import Store
from locallab.pool import Fetch, ModelNotLoaded, Pool
from locallab.settings import EngineSettings
from tests.fakes import FakeEngine, registry


class Made:
    """A pool whose engines are kept for a look."""

    def __init__(self, folder: Path, layers: Any = (), **options: Any) -> None:
        self.engines: list[FakeEngine] = []
        self.template: str | None = None
        self.pool = Pool(registry(folder), Store(folder / "store"), layers, engine=self.make, **options)  # type: ignore[arg-type]

    def make(self, path: Path, settings: EngineSettings, deliver: Any) -> FakeEngine:
        self.engines.append(FakeEngine(path, settings, deliver, template=self.template))
        return self.engines[-1]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    made = Made(tmp_path)
    yield made
    made.pool.close()


def test_nothing_is_loaded_at_first(made: Made) -> None:
    assert made.pool.current is None
    assert made.pool.status("tiny:1b") == "unloaded"
    with pytest.raises(EngineClosed, match="no model is loaded"):
        made.pool.find(None, strict=True)


def test_load(made: Made) -> None:
    loaded = made.pool.load_now("FIRST")
    assert loaded.spec.id == "tiny:1b" and made.pool.current is loaded
    assert [made.pool.find(name, strict=True) for name in (None, "", "tiny:1b", "first")] == [loaded] * 4
    assert made.pool.status("tiny:1b") == "ready" and made.pool.status("other:2b") == "unloaded"
    assert made.pool.load_now("tiny:1b") is loaded and len(made.engines) == 1


def test_names_of_other_models(made: Made) -> None:
    loaded = made.pool.load_now("tiny:1b")
    assert made.pool.find("gpt-4o", strict=False) is loaded
    with pytest.raises(UnknownModel, match="unknown model 'gpt-4o'"):
        made.pool.find("gpt-4o", strict=True)
    for strict in (True, False):
        with pytest.raises(ModelNotLoaded, match=r"'other:2b' is not loaded; POST /models/load loads it"):
            made.pool.find("other:2b", strict=strict)


def test_swap_closes_the_old_one_with_grace(tmp_path: Path) -> None:
    made = Made(tmp_path, grace=3.0)
    made.pool.load_now("tiny:1b")
    made.pool.load_now("other:2b")
    assert made.pool.find(None, strict=True).spec.id == "other:2b" and made.pool.status("tiny:1b") == "unloaded"
    made.pool.close(1.0)
    assert [engine.closed_with for engine in made.engines] == [3.0, 1.0]


def test_close_cuts_short_the_closing_of_the_one_before(made: Made) -> None:
    made.pool.load_now("tiny:1b")
    forever = threading.Event()
    made.engines[0].script = lambda prompt, params: [forever]
    ended: list[TokenEvent] = []
    made.engines[0].submit([1], SamplingParams(), ended.append)
    made.pool.load_now("other:2b")
    made.pool.close()
    assert [event.finish_reason for event in ended] == ["cancelled"]


def test_failed_load_leaves_the_old_one(made: Made) -> None:
    loaded = made.pool.load_now("tiny:1b")
    with pytest.raises(ModelLoadError, match=r"broken-3b\.gguf: not a GGUF file"):
        made.pool.load_now("broken:3b")
    assert made.pool.current is loaded and made.engines[0].closed_with is None
    assert made.pool.status("broken:3b") == "error" and "not a GGUF file" in (made.pool.error("broken:3b") or "")
    assert made.pool.error("tiny:1b") is None


def test_unusable_template_is_a_failed_load(made: Made) -> None:
    made.template = "{% for %}"
    with pytest.raises(ModelLoadError, match=r"tiny-1b\.gguf: the model's chat template cannot be used"):
        made.pool.load_now("tiny:1b")
    assert made.engines[0].closed_with == 0.0 and made.pool.current is None


def test_a_load_that_succeeds_forgets_the_error(tmp_path: Path) -> None:
    failures = [SourceError("no network")]

    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        if failures:
            raise failures.pop()
        return tmp_path / "x.gguf"

    made = Made(tmp_path, fetch=fetch)
    with pytest.raises(SourceError):
        made.pool.load_now("tiny:1b")
    assert made.pool.status("tiny:1b") == "error"
    made.pool.load_now("tiny:1b")
    assert made.pool.status("tiny:1b") == "ready" and made.pool.error("tiny:1b") is None
    made.pool.close()


def test_unknown_model(made: Made) -> None:
    with pytest.raises(UnknownModel, match="did you mean tiny:1b"):
        made.pool.load_now("tiny:1")


def test_progress_is_passed_on(tmp_path: Path) -> None:
    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        progress(1, 2)
        return tmp_path / "x.gguf"

    told: list[Any] = []
    made = Made(tmp_path, fetch=fetch)
    made.pool.load_now("tiny:1b", lambda done, total: told.append((done, total)))
    assert told == [(1, 2)]
    made.pool.close()


def test_settings_in_order(tmp_path: Path) -> None:
    layers = [("the environment", {"threads": 1, "batch": "64"}), ("a flag", {"threads": 2})]
    made = Made(tmp_path, layers)
    made.pool.load_now("tiny:1b")
    assert made.engines[0].settings == EngineSettings(context=512, threads=2, batch=64)
    made.pool.close()


def test_wrong_setting(tmp_path: Path) -> None:
    made = Made(tmp_path, [("a flag", {"threats": 2})])
    with pytest.raises(ConfigError, match="a flag: unknown setting 'threats'"):
        made.pool.load_now("tiny:1b")
    made.pool.close()


class Slow:
    """A fetch that reports progress until it is let go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = threading.Event()
        self.go = threading.Event()

    def __call__(self, spec: Any, store: Any, progress: Any) -> Path:
        self.started.set()
        while not self.go.wait(0.001):
            progress(1, None)
        return self.path


def test_loading_is_told_and_one_load_at_a_time(tmp_path: Path) -> None:
    slow: Fetch = Slow(tmp_path / "x.gguf")
    made = Made(tmp_path, fetch=slow)

    async def scenario() -> None:
        first = asyncio.ensure_future(made.pool.load("tiny:1b"))
        again = asyncio.ensure_future(made.pool.load("first"))
        await asyncio.to_thread(slow.started.wait)
        assert made.pool.status("tiny:1b") == "loading"
        for name in (None, "tiny:1b", "gpt-4o"):
            with pytest.raises(EngineClosed, match="'tiny:1b' is still loading"):
                made.pool.find(name, strict=False)
        slow.go.set()
        assert await first is await again

    asyncio.run(scenario())
    assert len(made.engines) == 1
    made.pool.close()


def test_another_model_that_is_loading(tmp_path: Path) -> None:
    slow = Slow(tmp_path / "x.gguf")
    slow.go.set()
    made = Made(tmp_path, fetch=slow)
    made.pool.load_now("tiny:1b")
    slow.go.clear(), slow.started.clear()

    async def scenario() -> None:
        load = asyncio.ensure_future(made.pool.load("other:2b"))
        await asyncio.to_thread(slow.started.wait)
        with pytest.raises(EngineClosed, match="'other:2b' is still loading"):
            made.pool.find("other:2b", strict=True)
        assert made.pool.find(None, strict=True).spec.id == "tiny:1b"
        slow.go.set()
        assert (await load).spec.id == "other:2b"

    asyncio.run(scenario())
    made.pool.close()


def test_close_stops_a_fetch(tmp_path: Path) -> None:
    slow = Slow(tmp_path / "x.gguf")
    made = Made(tmp_path, fetch=slow)

    async def scenario() -> None:
        load = asyncio.ensure_future(made.pool.load("tiny:1b"))
        await asyncio.to_thread(slow.started.wait)
        await asyncio.to_thread(made.pool.close)
        with pytest.raises(EngineClosed, match="stopping"):
            await load

    asyncio.run(scenario())
    assert made.engines == []


def test_close_during_the_load_itself(tmp_path: Path) -> None:
    made = Made(tmp_path)
    inside, go = threading.Event(), threading.Event()

    def make(path: Path, settings: Any, deliver: Any) -> FakeEngine:
        inside.set()
        go.wait()
        return Made.make(made, path, settings, deliver)

    pool = Pool(made.pool.registry, made.pool.store, engine=make)  # type: ignore[arg-type]

    async def scenario() -> None:
        load = asyncio.ensure_future(pool.load("tiny:1b"))
        await asyncio.to_thread(inside.wait)
        closing = asyncio.ensure_future(asyncio.to_thread(pool.close))
        while not pool._closed:
            await asyncio.sleep(0.001)
        go.set()
        await closing
        with pytest.raises(EngineClosed):
            await load

    asyncio.run(scenario())
    assert made.engines[0].closed_with == 0.0 and pool.current is None


def test_a_cancelled_caller_does_not_stop_the_load(tmp_path: Path) -> None:
    slow = Slow(tmp_path / "x.gguf")
    made = Made(tmp_path, fetch=slow)

    async def scenario() -> None:
        load = asyncio.ensure_future(made.pool.load("tiny:1b"))
        await asyncio.to_thread(slow.started.wait)
        load.cancel()
        slow.go.set()
        assert (await made.pool.load("tiny:1b")).spec.id == "tiny:1b"

    asyncio.run(scenario())
    assert len(made.engines) == 1
    made.pool.close()


def test_closed(made: Made) -> None:
    made.pool.load_now("tiny:1b")
    made.pool.close()
    made.pool.close()
    with pytest.raises(EngineClosed, match="stopping"):
        made.pool.load_now("tiny:1b")
    with pytest.raises(EngineClosed, match="stopping"):
        made.pool.find(None, strict=False)


def collected(pool: Pool) -> tuple[list[TokenEvent], set[str]]:
    events: list[TokenEvent] = []
    threads: set[str] = set()
    ended = threading.Event()

    def listen(event: TokenEvent) -> None:
        events.append(event)
        threads.add(threading.current_thread().name)
        if event.finish_reason:
            ended.set()

    pool.find(None, strict=True).engine.submit([1], SamplingParams(), listen)
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
    made.pool.find(None, strict=True).engine.submit([1], SamplingParams(), pytest.fail)
    made.pool.close(5.0)
