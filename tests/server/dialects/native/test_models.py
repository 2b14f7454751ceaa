"""The model routes, loading on demand, and leases."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from locallab.models.store import Store
from locallab.pool import Pool
from locallab.server.inference.generation import ClientGone
from locallab.server.inference.lease import Leases, lease
from locallab.units import compact_bytes
from tests.support.fake_engine import TEXT, FakeEngine, registry
from tests.support.http_server import Serve, Served
from tests.support.wait import until

USER = [{"role": "user", "content": "hi"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "hi", "model_id": "other:2b"},
    "/chat": {"messages": USER, "model_id": "other:2b"},
    "/v1/chat/completions": {"messages": USER, "model": "other:2b"},
    "/v1/completions": {"prompt": "hi", "model": "other:2b"},
}


def test_current(served: Served) -> None:
    for path in ("/models/current", "/api/v1/models/current", "/models/status/tiny:1b", "/models/status/first"):
        body = served.http.get(path).json()
        assert {"name": "tiny:1b", "loaded": True, "status": "ready", "size": "98MB", "size_bytes": 98_000_000}.items() <= (
            body.items()
        )
        assert (body["vram_usage"], body["usage_of"], body["usage_bytes"]) == ("100MB", "ram", 100_000_000)
        assert body["context"] == 512 and body["trained_context"] == 1024 and body["device"] == "CPU (no thread)"
        assert body["loaded_at"] > 0 and body["load_seconds"] >= 0 and body["aliases"] == ["first"]


def test_available(serve: Serve) -> None:
    with serve() as served:
        (served.pool.store.root.parent / "broken-3b.gguf").unlink()
        for path in ("/models/available", "/api/v1/models/available"):
            models = served.http.get(path).json()["models"]
            assert [(m["name"], m["status"], m["loaded"], m["on_disk"]) for m in models] == [
                ("tiny:1b", "ready", True, True),
                ("other:2b", "unloaded", False, True),
                ("broken:3b", "unloaded", False, False),
            ]
            for model in models:
                assert {"size": "98MB", "size_bytes": 98_000_000, "context": 512}.items() <= model.items()
                assert model["description"] == "a fake" and model["recommended"] is False


def test_sizes_are_those_of_the_files(serve: Serve) -> None:
    with serve() as served:
        (served.pool.store.root.parent / "other-2b.gguf").write_bytes(b"GGUF" * 1000)
        models = served.http.get("/models/available").json()["models"]
        assert [model["size"] for model in models] == ["98MB", "4KB", "98MB"]


def test_real_context_of_a_loaded_model(serve: Serve) -> None:
    with serve(engine={"context": 333}) as served:
        models = served.http.get("/models/available").json()["models"]
        assert [model["context"] for model in models] == [333, 512, 512]


@pytest.mark.parametrize("path", ["/models/status/other:2b", "/models/status/other%3A2b", "//models/status/OTHER:2b/"])
def test_status_of_a_model_that_is_not_loaded(served: Served, path: str) -> None:
    body = served.http.get(f"{served.url}{path}").json()
    assert (body["name"], body["loaded"], body["status"], body["vram_usage"]) == ("other:2b", False, "unloaded", None)
    assert "device" not in body and "error" not in body


def test_unknown_models(served: Served) -> None:
    message = "unknown model 'tiny'; did you mean tiny:1b?"
    responses = [
        served.http.get("/models/status/tiny"),
        served.http.post("/models/load", json={"model_id": "tiny"}),
        served.http.post("/models/unload", json={"model_id": "tiny"}),
        served.http.post("/generate", json={"prompt": "hi", "model_id": "tiny"}),
        served.http.post("/chat", json={"messages": USER, "model_id": "tiny"}),
    ]
    assert [(each.status_code, each.json()) for each in responses] == [(404, {"detail": message})] * 5


def test_load(serve: Serve) -> None:
    with serve() as served:
        before = served.engine
        response = served.http.post("/models/load", json={"model_id": "other:2b"})
        assert response.status_code == 200
        assert (response.json()["name"], response.json()["status"]) == ("other:2b", "ready")
        assert served.http.get("/models/current").json()["name"] == "other:2b"
        until(lambda: before.closed_with == 0.0)
        assert served.http.get("/models/status/tiny:1b").json()["status"] == "unloaded"


def test_load_that_fails(serve: Serve) -> None:
    with serve() as served:
        response = served.http.post("/models/load", json={"model_id": "broken:3b"})
        assert response.status_code == 500 and "not a GGUF file" in response.json()["detail"]
        models = served.http.get("/models/available").json()["models"]
        assert models[2]["status"] == "error" and "not a GGUF file" in models[2]["error"]
        status = served.http.get("/models/status/broken:3b").json()
        assert status["status"] == "error" and "not a GGUF file" in status["error"] and status["loaded"] is False
        assert served.http.post("/generate", json={"prompt": "hi"}).json()["model"] == "tiny:1b"


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("load", {}, "model_id: is missing"),
        ("load", {"model_id": ""}, "model_id: is missing"),
        ("load", {"model_id": 1}, "model_id: expected str, got int"),
        ("load", {"model_id": "tiny:1b", "force": "yes"}, "force: expected bool, got str"),
        ("unload", {"model_id": 1}, "model_id: expected str, got int"),
        ("unload", {"force": 1}, "force: expected bool, got int"),
    ],
)
def test_wrong_bodies(served: Served, path: str, body: dict[str, Any], detail: str) -> None:
    response = served.http.post(f"/models/{path}", json=body)
    assert (response.status_code, response.json()) == (400, {"detail": detail})


@pytest.mark.parametrize("body", [b"", b"{}", b'{"model_id": null, "force": null}', b'{"model_id": "first"}'])
def test_unload(serve: Serve, body: bytes) -> None:
    with serve() as served:
        engine = served.engine
        response = served.http.post("/models/unload", content=body)
        assert response.status_code == 200
        assert (response.json()["name"], response.json()["status"], response.json()["loaded"]) == ("tiny:1b", "unloaded", False)
        assert engine.closed_with == 0.0
        nothing = {"name": None, "size": None, "loaded": False, "vram_usage": None, "status": "unloaded"}
        assert served.http.get("/models/current").json() == nothing
        assert served.http.post("/models/unload").json() == nothing
        assert served.http.post("/models/unload", json={"model_id": "tiny:1b"}).json()["status"] == "unloaded"
        response = served.http.post("/generate", json={"prompt": "hi"})
        assert response.status_code == 503 and "no model is loaded; POST /models/load" in response.json()["detail"]
        assert served.http.post("/generate", json={"prompt": "hi", "model_id": "first"}).json()["model"] == "tiny:1b"


def test_current_names_the_model_that_comes_back(serve: Serve) -> None:
    with serve(keep_alive=0) as served:
        until(lambda: served.pool.current is None)
        body = served.http.get("/models/current").json()
        assert (body["name"], body["status"], body["vram_usage"]) == ("tiny:1b", "unloaded", None)
        assert served.http.post("/generate", json={"prompt": "hi"}).json()["model"] == "tiny:1b"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("room", [1, 2])
def test_a_request_loads_its_model(serve: Serve, path: str, room: int) -> None:
    with serve(room=room) as served:
        assert served.http.get("/models/current").json()["name"] == "tiny:1b"
        response = served.http.post(path, json=ROUTES[path])
        assert response.status_code == 200 and response.json()["model"] == "other:2b"
        assert served.http.get("/models/current").json()["name"] == "other:2b"


@pytest.mark.parametrize("path", ROUTES)
def test_a_failed_load_is_the_answer(serve: Serve, path: str) -> None:
    with serve() as served:
        body = {name: "broken:3b" if value == "other:2b" else value for name, value in ROUTES[path].items()}
        response = served.http.post(path, json={**body, "stream": True})
        assert response.status_code == 500 and "not a GGUF file" in response.text


@pytest.mark.parametrize("path", ROUTES)
def test_refused_where_requests_load_nothing(serve: Serve, path: str) -> None:
    with serve(on_demand="refuse") as served:
        response = served.http.post(path, json=ROUTES[path])
        assert response.status_code == 404 and "'other:2b' is not loaded; POST /models/load loads it" in response.text


def test_a_stream_keeps_its_model(serve: Serve) -> None:
    """A swap waits for the last byte of a stream; requests that come meanwhile wait too, and none is cut."""
    with serve(room=1) as served, ThreadPoolExecutor() as threads:
        go, engine = threading.Event(), served.engine
        engine.script = lambda prompt, params: [b"Hi", go, b" there"] if bytes(prompt[1:]) == b"first" else [b"late"]
        with served.http.stream("POST", "/generate", json={"prompt": "first", "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines) == 'data: {"response":"Hi"}'
            swap = threads.submit(served.http.post, "/generate", json={"prompt": "hi", "model_id": "other:2b"})
            until(lambda: served.pool._plan._making_room == {"tiny:1b"})
            late = threads.submit(served.http.post, "/generate", json={"prompt": "hi", "model_id": "tiny:1b"})
            assert engine.closed_with is None and not swap.done()
            go.set()
            rest = "".join(lines)
        assert "there" in rest and rest.endswith("data: [DONE]")
        assert swap.result().json()["model"] == "other:2b" and swap.result().json()["response"] == TEXT
        assert late.result().json()["model"] == "tiny:1b"
        assert engine.cancelled == []


def test_force_cuts_a_stream(serve: Serve) -> None:
    with serve(room=1) as served:
        served.script(b"Hi", threading.Event())
        with served.http.stream("POST", "/generate", json={"prompt": "hi", "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines) == 'data: {"response":"Hi"}'
            with httpx.Client(base_url=served.url, timeout=30) as other:
                assert other.post("/models/load", json={"model_id": "other:2b", "force": True}).json()["name"] == "other:2b"
            assert [line for line in lines if line] == [
                'data: {"detail":"the engine was closed before the answer was complete"}'
            ]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_the_lease_ends_with_the_answer(serve: Serve, path: str, stream: bool) -> None:
    with serve(room=1) as served:
        for body in ({**ROUTES[path], "stream": stream}, {**ROUTES[path], "temperature": -1}, {"model_id": "other:2b"}):
            served.http.post(path, json=body)
            until(lambda: all(each.leases == 0 for each in served.pool._plan.residents.values()))
        served.http.post("/models/load", json={"model_id": "tiny:1b"})
        assert [each.spec.id for each in served.pool.loaded] == ["tiny:1b"]


class Held:
    """Serve a pool whose one model waits in its load."""

    def __init__(self, folder: Path) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.pool = Pool(registry(folder), Store(folder / "store"), engine=self.make)

    def make(self, path: Path, settings: Any, post: Any) -> Any:
        self.begun.set()
        assert self.go.wait(20)
        return FakeEngine(path, settings, post)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    held = Held(tmp_path)
    yield held
    held.go.set()
    held.pool.close()


@pytest.mark.parametrize("leaves", ["closes the connection", "is cancelled"])
def test_client_that_leaves_while_its_model_is_loaded(held: Held, leaves: str) -> None:
    left = asyncio.Event()
    ended: list[BaseException] = []

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await lease(Request(scope, receive), held.pool, "tiny:1b", strict=True)
        except BaseException as error:
            ended.append(error)
            raise

    async def send(message: Any) -> None:
        raise AssertionError("nothing is to be sent")

    async def scenario() -> None:
        task = asyncio.ensure_future(Leases(app)({"type": "http", "headers": [], "state": {"role": "admin"}}, receive, send))
        await asyncio.to_thread(held.begun.wait)
        if leaves == "is cancelled":
            task.cancel()
        else:
            left.set()
        with pytest.raises((ClientGone, asyncio.CancelledError)):
            await task
        held.go.set()
        await held.pool.load("tiny:1b")

    asyncio.run(scenario())
    assert isinstance(ended[0], asyncio.CancelledError if leaves == "is cancelled" else ClientGone)
    assert [each.leases for each in held.pool._plan.residents.values()] == [0]


def test_client_that_leaves_is_logged_and_the_load_goes_on(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with serve(load=None) as served:
        begun, go = threading.Event(), threading.Event()
        make = served.pool._jobs._engine

        def slowly(*arguments: Any) -> Any:
            begun.set()
            assert go.wait(20)
            return make(*arguments)

        served.pool._jobs._engine = slowly
        with pytest.raises(httpx.ReadTimeout):
            served.http.post("/generate", json={"prompt": "hi", "model_id": "tiny:1b"}, timeout=0.2)
        assert begun.wait(20)
        until(lambda: served.pool._plan.queue["tiny:1b"].tickets == [])
        go.set()
        assert served.http.post("/generate", json={"prompt": "hi", "model_id": "tiny:1b"}).json()["model"] == "tiny:1b"
    assert not [record for record in caplog.records if record.exc_info]


def test_stopping_answers_those_who_wait_for_a_load(serve: Serve) -> None:
    with serve(load=None) as served, ThreadPoolExecutor() as threads:
        begun, go = threading.Event(), threading.Event()
        make = served.pool._jobs._engine

        def slowly(*arguments: Any) -> Any:
            begun.set()
            assert go.wait(20)
            return make(*arguments)

        served.pool._jobs._engine = slowly
        waiting = threads.submit(served.http.post, "/generate", json={"prompt": "hi", "model_id": "tiny:1b"})
        assert begun.wait(20)
        closing = threads.submit(served.pool.close)
        response = waiting.result(20)
        go.set()
        closing.result(20)
        assert (response.status_code, response.json()) == (503, {"detail": "the server is stopping"})


def test_crowd_over_http(serve: Serve) -> None:
    """Clients of two models that do not fit together, with loads and unloads: each is answered by its own model."""

    async def scenario(url: str) -> list[tuple[str, int, str]]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:

            async def ask(name: str) -> tuple[str, int, str]:
                response = await client.post("/generate", json={"prompt": "hi", "model_id": name})
                return name, response.status_code, response.json().get("model", response.text)

            async def manage(action: str, name: str) -> tuple[str, int, str]:
                response = await client.post(f"/models/{action}", json={"model_id": name})
                return name, response.status_code, response.json()["name"]

            names = ["tiny:1b", "other:2b"]
            asked = [ask(names[i * 7 // 3 % 2]) for i in range(60)]
            managed = [manage(action, name) for action in ("load", "unload") for name in names for _ in range(3)]
            return await asyncio.gather(*asked[:30], *managed, *asked[30:])

    with serve(room=1) as served:
        answers = asyncio.run(scenario(served.url))
        assert all((status, model) == (200, name) for name, status, model in answers) and len(answers) == 72


@pytest.mark.parametrize(
    ("size", "text"), [(5, "5B"), (98_000_000, "98MB"), (1_234_567_890, "1.23GB"), (2_500, "2.5KB"), (None, "unknown")]
)
def test_sizes(size: int | None, text: str) -> None:
    assert compact_bytes(size) == text
