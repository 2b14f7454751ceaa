"""What clients see when a model's engine ends by an error: an error of their dialect, and a model that is loaded again."""

from __future__ import annotations

import threading

import pytest

from locallab.errors import EngineDied
from tests.support.dialect_requests import ROUTES
from tests.support.fake_engine import FIM, say
from tests.support.http_server import Serve, Served


def die(served: Served) -> None:
    served.pool.loaded[0].engine.die("out of luck")  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ROUTES)
def test_a_whole_answer_is_503_and_can_be_asked_for_again(serve: Serve, path: str) -> None:
    body = {**ROUTES[path], "stream": False}
    with serve(engine={"fim": FIM}) as served:
        served.script(EngineDied("out of luck"))
        answer = served.http.post(path, json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "out of luck" in answer.text and "again" in answer.text
        served.script(*say("fine"))
        assert served.http.post(path, json=body).status_code == 200


@pytest.mark.parametrize("path", ROUTES)
def test_a_stream_ends_with_an_error_of_its_dialect(serve: Serve, path: str) -> None:
    with serve(engine={"fim": FIM}) as served:
        go = threading.Event()
        served.script(b"a" * 8, go, EngineDied("out of luck"))
        with served.http.stream("POST", path, json={**ROUTES[path], "stream": True}) as answer:
            assert answer.status_code == 200
            go.set()
            last = answer.read().decode().rstrip("\n").rpartition("\n")[2]
        assert ('"error"' in last or last.startswith('data: {"detail"')) and "out of luck" in last
        served.script(*say("fine"))
        assert served.http.post(path, json=ROUTES[path]).status_code == 200


def test_a_model_that_has_failed_is_shown_so_until_a_request_loads_it_again(serve: Serve) -> None:
    with serve() as served:
        name = served.pool.loaded[0].spec.id
        die(served)
        reason = "the model's engine has failed: out of luck; try again in 2 s, which loads the model again"
        health = served.http.get("/health").json()
        assert (health["status"], health["model"], health["failed"]) == ("healthy", None, {name: reason})
        info = served.http.get("/system/info").json()
        assert (info["failed"], info["models"], info["loads"]["deaths"]) == ({name: reason}, [], 1)
        status = served.http.get(f"/models/status/{name}").json()
        assert (status["status"], status["error"], status["loaded"]) == ("error", reason, False)
        [listed] = [each for each in served.http.get("/v1/models").json()["data"] if each["id"] == name]
        assert listed["status"] == "error"
        assert "locallab_engine_deaths_total 1.0" in served.http.get("/metrics").text
        assert served.http.post("/generate", json={"prompt": "hi"}).status_code == 200
        assert "failed" not in served.http.get("/health").json()
        assert served.http.get(f"/models/status/{name}").json()["status"] == "ready"


def test_one_that_fails_again_and_again_is_503_until_it_may_be_loaded(serve: Serve) -> None:
    with serve() as served:
        for _ in range(2):
            die(served)
            answer = served.http.post("/v1/completions", json={"prompt": "hi"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] in ("1", "2")
