"""GET /api/v1/events: what watchers see, who sees what, and what it costs while nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import types
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from locallab.engine import LOCAL
from locallab.engine.view import EngineView
from locallab.keys import Keyring, KeyStore
from locallab.pool.memory import Suited
from locallab.server.app import create_app
from locallab.server.dialects.native import activity, events
from locallab.server.dialects.native.activity import MOST_SHOWN, MemoryNow, Sampler, _Observed
from locallab.server.dialects.native.events import MOST_EACH, Events
from locallab.server.listener import bind, url
from locallab.server.runner import Background
from locallab.settings import ServerSettings
from tests.support.fake_engine import FakeEngine, FakeMemory
from tests.support.http_server import Serve, Served
from tests.support.openapi_check import Described
from tests.support.wait import PATIENCE, until
from tests.support.watching import Message, asking, noted_samplers, watching

STILL = MemoryNow(512 << 20, 16 << 30, 8 << 30, [])


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.json")


@pytest.fixture
def samplers(monkeypatch: pytest.MonkeyPatch) -> list[Sampler]:
    """The samplers of servers that are started now."""
    return noted_samplers(monkeypatch)


def headers(store: KeyStore, name: str, role: Any = "use") -> dict[str, str]:
    return {"x-api-key": store.create(name, "free", role)[1]}


def names(message: Message) -> list[str]:
    return [each["name"] for each in message["models"]]


def keys(message: Message) -> list[str | None]:
    return sorted(each["key"] for each in message["requests"])


def test_a_watcher_is_shown_everything_at_once(served: Served) -> None:
    with watching(served.http) as watch:
        assert watch.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        message = watch.read()
    assert message is not None and (message["running"], message["waiting"], message["requests"]) == (0, 0, [])
    [model] = message["models"]
    assert (model["name"], model["kind"], model["step_seconds"]) == ("tiny:1b", "text", None)
    assert model["kv"]["free"] == model["kv"]["cells"] == 2048 and model["stored_limit_bytes"] == 4 << 20
    assert message["memory"]["process_bytes"] > 1 << 20 and message["memory"]["available_bytes"] > 0
    described = Described(served.http.get("/openapi.json").json())
    content = described.operation("get", "/api/v1/events")["responses"]["200"]["content"]
    assert list(content) == ["text/event-stream"]
    described.check(message, content["text/event-stream"]["schema"])


def test_a_request_is_followed_from_its_prompt_to_its_end(served: Served) -> None:
    with watching(served.http) as watch, asking(served, None) as go:
        message = watch.until(lambda message: [each["state"] for each in message["requests"]] == ["decode"])
        [request] = message["requests"]
        assert (request["model"], request["key"], request["answer_tokens"]) == ("tiny:1b", None, 3)
        assert request["computed_tokens"] == request["prompt_tokens"] + 3 and request["ttft_seconds"] == 0.25
        later = watch.until(lambda message: message["requests"][0]["age_seconds"] > request["age_seconds"])
        assert later["running"] == 1 and later["models"][0]["kv"]["live"] > 0
        described = Described(served.http.get("/openapi.json").json())
        schema = described.operation("get", "/api/v1/events")["responses"]["200"]["content"]["text/event-stream"]["schema"]
        described.check(later, schema)
        go.set()
        end = watch.until(lambda message: message["running"] == 0)
        assert end["requests"] == [] and end["models"][0]["cache"]["requests"]["first time"] > 0


def test_an_admin_sees_all_requests_and_others_their_own(serve: Serve, store: KeyStore) -> None:
    ann, bob, root = headers(store, "ann"), headers(store, "bob"), headers(store, "root", "admin")
    with serve() as served, asking(served, ann, bob, bob), contextlib.ExitStack() as open_streams:
        watch = {str(each): open_streams.enter_context(watching(served.http, each)) for each in (ann, bob, root)}
        for sent, seen in ((ann, ["ann"]), (bob, ["bob", "bob"]), (root, ["ann", "bob", "bob"])):
            message = watch[str(sent)].until(lambda message: message["running"] == 3)
            assert keys(message) == seen
        assert "bob" not in "".join(watch[str(ann)].raw)
        assert served.http.get("/api/v1/events").status_code == 401
        assert served.http.get("/api/v1/events", headers={"x-api-key": "ll-wrong"}).status_code == 401


def test_what_is_shown_is_bounded_and_counts_are_not(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "MOST_SHOWN", 2)
    with asking(served, None, None, None), watching(served.http) as watch:
        message = watch.until(lambda message: message["running"] == 3)
        assert len(message["requests"]) == 2 < MOST_SHOWN
        ages = [each["age_seconds"] for each in message["requests"]]
        assert ages == sorted(ages, reverse=True)


def test_a_stream_ends_with_its_key(serve: Serve, store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "CHECK", 0.05)
    ann, bob = headers(store, "ann"), headers(store, "bob")
    with serve() as served, watching(served.http, ann) as watch, watching(served.http, bob) as other:
        assert watch.read() and other.read()
        store.revoke("ann")
        with pytest.raises(AssertionError, match="ended"):
            watch.until(lambda message: False)
        with asking(served, bob):
            other.until(lambda message: message["running"])


def test_an_open_server_that_gets_keys_ends_the_streams(serve: Serve, store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "CHECK", 0.05)
    with serve() as served, watching(served.http) as watch:
        assert watch.read()
        store.create("ann", "free", "admin")
        with pytest.raises(AssertionError, match="ended"):
            watch.until(lambda message: False)


def test_few_may_watch_with_one_key(serve: Serve) -> None:
    with serve() as served, contextlib.ExitStack() as open_streams:
        first = open_streams.enter_context(contextlib.ExitStack())
        first.enter_context(watching(served.http))
        for _ in range(MOST_EACH - 1):
            open_streams.enter_context(watching(served.http))
        refused = served.http.get("/api/v1/events")
        assert refused.status_code == 503 and "8 clients with this key" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) > 0
        assert served.http.head("/api/v1/events").status_code == 503
        first.close()
        until(lambda: served.http.head("/api/v1/events").status_code == 200)


def test_few_may_watch_in_all(serve: Serve, store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST", 2)
    all_keys = [headers(store, name) for name in ("ann", "bob", "eve")]
    with serve() as served, contextlib.ExitStack() as open_streams:
        for each in all_keys[:2]:
            open_streams.enter_context(watching(served.http, each))
        refused = served.http.get("/api/v1/events", headers=all_keys[2])
        assert refused.status_code == 503 and "2 clients in all" in refused.json()["detail"]


def test_watching_is_not_counted_by_rate_limits(serve: Serve) -> None:
    with serve(rate_limit=True, native_rate="1/minute", free_rate="1/minute") as served:
        for _ in range(3):
            with watching(served.http) as watch:
                assert watch.read()


def test_nothing_is_computed_while_nobody_looks(serve: Serve, samplers: list[Any]) -> None:
    with serve() as served:
        [sampler] = samplers
        engine = served.engine
        served.http.post("/generate", json={"prompt": "hi"})
        served.http.head("/api/v1/events")
        assert (sampler.works, sampler.snapshots, engine.looks) == (False, 0, 0)
        with watching(served.http) as watch:
            assert watch.read() and sampler.works and engine.looks > 0
        until(lambda: not sampler.works)
        looks, snapshots = engine.looks, sampler.snapshots
        assert sampler.current is None and sampler._observed == {}
        with asking(served, None):
            until(lambda: bool(engine.submitted))
        served.http.post("/generate", json={"prompt": "hi"})
        assert (sampler.works, sampler.snapshots, engine.looks) == (False, snapshots, looks)
        with watching(served.http) as watch:
            assert watch.read() and sampler.works


def test_all_watchers_share_one_sampler(serve: Serve, samplers: list[Any]) -> None:
    with serve() as served, contextlib.ExitStack() as open_streams:
        watchers = [open_streams.enter_context(watching(served.http)) for _ in range(5)]
        with asking(served, None):
            seen = [watch.until(lambda message: message["running"]) for watch in watchers]
        [sampler] = samplers
        assert len(seen) == 5 and served.engine.looks == sampler.snapshots


def test_messages_come_at_most_five_times_a_second(served: Served) -> None:
    with asking(served, None), watching(served.http) as watch:
        watch.until(lambda message: message["running"])
        began = time.monotonic()
        for _ in range(4):
            assert watch.read()
        assert time.monotonic() - began > 3 / 5  # the first may be due already


def test_models_come_and_go_and_die(serve: Serve) -> None:
    with serve(load=None, on_demand="keep") as served, watching(served.http) as watch:
        message = watch.read()
        assert message is not None and (message["models"], message["loading"]) == ([], [])
        served.pool.load_now("tiny:1b")
        watch.until(lambda message: names(message) == ["tiny:1b"])
        served.pool.load_now("other:2b")
        watch.until(lambda message: sorted(names(message)) == ["other:2b", "tiny:1b"])
        served.http.post("/models/unload", json={"model_id": "other:2b"})
        watch.until(lambda message: names(message) == ["tiny:1b"])
        served.engine.die()
        message = watch.until(lambda message: names(message) == [])
        assert "broken" in watch.until(lambda message: message["failed"])["failed"]["tiny:1b"]
        served.http.post("/generate", json={"prompt": "hi", "model_id": "tiny:1b"})
        assert watch.until(lambda message: names(message) == ["tiny:1b"])["failed"] == {}


def test_requests_that_wait_for_a_model_are_counted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    held, suit = threading.Event(), FakeMemory.suit

    def slowly(*arguments: Any, **options: Any) -> Suited:
        assert held.wait(PATIENCE)
        return suit(*arguments, **options)

    monkeypatch.setattr(FakeMemory, "suit", slowly)
    with serve(load=None) as served, watching(served.http) as watch, ThreadPoolExecutor() as clients:
        asked = [clients.submit(served.http.post, "/generate", json={"prompt": "hi", "model_id": "tiny:1b"}) for _ in range(2)]
        try:
            watch.until(lambda message: message["loading"] == [{"name": "tiny:1b", "waiting": 2}])
        finally:
            held.set()
        assert [each.result(PATIENCE).status_code for each in asked] == [200, 200]
        assert watch.until(lambda message: names(message))["loading"] == []


def test_an_engine_that_does_not_answer_holds_nobody_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once, and shown as it was."""
    monkeypatch.setattr(activity, "PATIENCE", 0.01)
    asked: list[Future[EngineView]] = []
    with serve(on_demand="keep") as served, watching(served.http) as watch:
        watch.until(names)
        served.engine.view = lambda: asked.append(Future()) or asked[-1]  # type: ignore[method-assign, func-returns-value]
        served.pool.load_now("other:2b")
        watch.until(lambda message: sorted(names(message)) == ["other:2b", "tiny:1b"])
        with asking(served, None):
            watch.until(lambda message: message["running"] == 1)
        assert len(asked) == 1
        asked[0].set_exception(RuntimeError("broken"))
        until(lambda: len(asked) > 1)  # and what fails once is asked again
        watch.response.close()


def test_a_server_that_stops_ends_the_streams_at_once(tmp_path: Path, serve: Serve) -> None:
    """Also that of a client which reads nothing."""
    with serve() as served:
        settings = ServerSettings(rate_limit=False, grace=PATIENCE)
        app = create_app(served.pool, settings, Keyring(settings, KeyStore(tmp_path / "none.json")))
        with contextlib.closing(bind("127.0.0.1", 0)) as sock:
            server = Background(app, sock, settings)
            address = url(sock)
            with contextlib.ExitStack() as open_streams:
                silent = open_streams.enter_context(socket.create_connection(sock.getsockname()))
                silent.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                http = open_streams.enter_context(httpx.Client(base_url=address))
                watch = open_streams.enter_context(watching(http))
                assert watch.read()
                began = time.monotonic()
                server.stop()
                assert time.monotonic() - began < PATIENCE / 2
                while watch.read():
                    pass


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, PATIENCE))


class NoModels:
    """A pool in which nothing is loaded."""

    loaded = ()
    failures = types.SimpleNamespace(reasons={})

    def __init__(self) -> None:
        self.loading: dict[str, int] = {}


def test_what_has_not_changed_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "INTERVAL", 0.002)
    monkeypatch.setattr(activity, "RARELY", 0.0)
    measured = 0

    def memory() -> MemoryNow:
        nonlocal measured
        measured += 1
        return STILL

    async def scenario() -> None:
        sampler = Sampler(NoModels(), memory)  # type: ignore[arg-type]
        sampler.start(asyncio.Event())
        assert await sampler.after(None, PATIENCE)
        first = sampler.current
        while measured < 10:
            await asyncio.sleep(0.001)
        assert sampler.current is first and first is not None
        assert await sampler.after(first, 0.01)  # there is no news, but there may be
        sampler.stop()
        assert not await sampler.after(first, PATIENCE)

    run(scenario())


@pytest.mark.parametrize(("seconds", "pause"), [(0.0, 2.0), (0.004, 2.0), (0.02, 8.0), (1.0, 30.0)])
def test_memory_is_measured_more_rarely_where_that_takes_long(seconds: float, pause: float) -> None:
    assert activity.pause_after(seconds) == pause


def test_one_that_reads_slowly_gets_the_latest_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "INTERVAL", 0.002)

    async def scenario() -> None:
        pool = NoModels()
        route = Events(Sampler(pool), Keyring(ServerSettings(), KeyStore()))  # type: ignore[arg-type]
        state = {"role": "admin", "caller": LOCAL, "key": None}
        request = Request({"type": "http", "state": state})
        with route._watching(request) as messages:
            assert b'"loading":[]' in await anext(messages)
            for waiting in range(20):
                pool.loading = {"tiny": waiting}
                before = route.sampler.current
                assert await route.sampler.after(before, PATIENCE)
            assert b'"loading":[{"name":"tiny","waiting":19}]' in await anext(messages)
        assert not route.sampler.works

    run(scenario())


def test_a_sampler_that_fails_ends_the_streams(caplog: pytest.LogCaptureFixture) -> None:
    def memory() -> MemoryNow:
        raise RuntimeError("no figures")

    async def scenario() -> None:
        sampler = Sampler(NoModels(), memory)  # type: ignore[arg-type]
        sampler.start(asyncio.Event())
        assert not await sampler.after(None, PATIENCE)

    run(scenario())
    assert "no figures" in caplog.text


def view(at: float, prompt: int, answer: int, steps: int, seconds: float) -> EngineView:
    return EngineView(
        at=at,
        running=0,
        waiting=0,
        requests=(),
        prompt_tokens=prompt,
        answer_tokens=answer,
        steps=steps,
        step_seconds=seconds,
    )


VIEWS = {
    "one is no interval": ([(0, 9, 9, 9, 9.0)], (0.0, 0.0, None)),
    "steps of 20 ms": ([(0, 0, 0, 0, 0.0), (0.5, 100, 20, 25, 0.5)], (200.0, 40.0, 0.02)),
    "over a second and no longer": ([(at / 4, 0, at * at, at, float(at)) for at in range(20)], (0.0, 19.0**2 - 15**2, 1.0)),
    "nothing happens": ([(0, 5, 5, 5, 5.0), (1, 5, 5, 5, 5.0)], (0.0, 0.0, None)),
    "what left early is not taken off": ([(0, 50, 5, 5, 5.0), (1, 10, 5, 6, 5.5)], (0.0, 0.0, 0.5)),
}


@pytest.mark.parametrize(("views", "wanted"), VIEWS.values(), ids=VIEWS)
def test_rates_are_those_of_the_last_second(views: list[Any], wanted: tuple[float, float, float | None]) -> None:
    engine = FakeEngine()
    observed = _Observed(engine)  # type: ignore[arg-type]

    async def scenario() -> None:
        for each in views:
            answer: Future[EngineView] = Future()
            answer.set_result(view(*each))
            engine.view = lambda answer=answer: answer  # type: ignore[method-assign,misc]
            await observed.ask()
            observed.take()

    run(scenario())
    engine.close()
    assert observed.rates() == wanted
