"""llama.cpp's /props and /slots."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.support.http_server import Serve, Served
from tests.support.openapi_check import Described
from tests.support.wait import until

EMPTY_SETTINGS: dict[str, Any] = {"n_ctx": 0, "params": {}}


def test_props(coder: Served) -> None:
    props = coder.http.get("/props").json()
    settings = props["default_generation_settings"]
    assert settings["n_ctx"] == 512 and props["total_slots"] == 1
    assert (settings["params"]["temperature"], settings["params"]["n_predict"]) == (0.8, -1)
    assert props["model_path"] == "tiny:1b" and props["chat_template"] == "{{ messages[0].content }}"
    assert props["chat_template_caps"]["supports_tools"] is True
    assert coder.http.get("/props", params={"model": "first"}).json() == props


def test_without_a_model(serve: Serve) -> None:
    with serve(load=None) as served:
        props = served.http.get("/props").json()
        assert props["default_generation_settings"] == EMPTY_SETTINGS
        assert (props["model_path"], props["total_slots"], props["chat_template"]) == ("none", 0, "")
        assert served.http.get("/slots").json() == []
        described = Described(served.http.get("/openapi.json").json())
        described.check_response(described.operation("get", "/props"), served.http.get("/props"))


@pytest.mark.parametrize("path", ["/props", "/slots"])
@pytest.mark.parametrize("model", ["other:2b", "unknown"])
def test_a_model_that_is_not_loaded(served: Served, path: str, model: str) -> None:
    response = served.http.get(path, params={"model": model})
    assert response.status_code == 404 and model in response.json()["error"]["message"]


def test_slots_are_taken_by_what_runs(served: Served) -> None:
    go = threading.Event()
    served.script(b"a", go, b"b")
    free = {"id": 0, "n_ctx": 512, "speculative": False, "is_processing": False, "model": "tiny:1b"}
    described = Described(served.http.get("/openapi.json").json())
    response = served.http.get("/slots")
    described.check_response(described.operation("get", "/slots"), response)
    assert response.json() == [free]
    with served.http.stream("POST", "/completion", json={"prompt": "a", "stream": True}):
        until(lambda: served.http.get("/slots", params={"model": "tiny:1b"}).json() == [{**free, "is_processing": True}])
        busy = served.http.get("/slots", params={"fail_on_no_slot": 1})
        assert busy.status_code == 503 and "retry-after" in busy.headers
        go.set()
    until(lambda: served.http.get("/slots?fail_on_no_slot=1").json() == [free])
