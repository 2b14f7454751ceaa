"""llama.cpp's /lora-adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.http_server import Served, start_in
from tests.support.openapi_check import Described


@pytest.fixture(scope="module")
def shared_adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with start_in(tmp_path_factory.mktemp("adapters"))(adapters=["pirate", "poet"]) as served:
        yield served


@pytest.fixture
def adapted(shared_adapted: Served) -> Served:
    shared_adapted.engine.reset()
    shared_adapted.engine.activate([])
    return shared_adapted


def scales(served: Served) -> list[tuple[int, float]]:
    return [(each["id"], each["scale"]) for each in served.http.get("/lora-adapters").json()]


def test_adapters_are_listed_by_their_ids(adapted: Served) -> None:
    response = adapted.http.get("/lora-adapters")
    facts = {"scale": 0.0, "task_name": "", "prompt_prefix": ""}
    assert response.json() == [{"id": 0, "path": "pirate", **facts}, {"id": 1, "path": "poet", **facts}]
    described = Described(adapted.http.get("/openapi.json").json())
    described.check_response(described.operation("get", "/lora-adapters"), response)


def test_scales_hold_for_requests_that_choose_none(adapted: Served) -> None:
    response = adapted.http.post("/lora-adapters", json=[{"id": 1, "scale": 0.5}])
    assert response.json() == {"success": True} and scales(adapted) == [(0, 0.0), (1, 0.5)]
    assert adapted.http.post("/lora-adapters?model=tiny:1b:pirate", json=[{"id": 0, "scale": -1}, {"id": 1}]).status_code == 200
    assert scales(adapted) == [(0, -1.0), (1, 0.0)], "those that are not named are off"
    assert adapted.http.post("/lora-adapters", json=[]).status_code == 200
    assert scales(adapted) == [(0, 0.0), (1, 0.0)]


WRONG: list[tuple[Any, str]] = [
    ([{"id": 2, "scale": 1}], "this model has no adapter 2"),
    ([{"scale": 1}], "expected a list of objects with id and scale"),
    ({"id": 0, "scale": 1}, "expected a list of objects with id and scale"),
    ([{"id": 0, "scale": 101}], "a scale must be between -100 and 100"),
]


@pytest.mark.parametrize(("body", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_a_wrong_body_changes_nothing(adapted: Served, body: Any, reason: str) -> None:
    adapted.http.post("/lora-adapters", json=[{"id": 0, "scale": 0.5}])
    response = adapted.http.post("/lora-adapters", json=body)
    assert response.status_code == 400 and reason in response.json()["error"]["message"]
    assert adapted.http.post("/lora-adapters", content=b"[{").status_code == 400
    assert scales(adapted) == [(0, 0.5), (1, 0.0)]


def test_a_model_without_adapters(served: Served) -> None:
    assert served.http.get("/lora-adapters").json() == []
    assert served.http.post("/lora-adapters", json=[]).json() == {"success": True}
    assert served.http.get("/lora-adapters?model=other:2b").status_code == 404


def test_without_a_model_there_are_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    with start_in(tmp_path_factory.mktemp("empty"))(load=None) as served:
        assert served.http.get("/lora-adapters").json() == []
        assert served.http.post("/lora-adapters", json=[]).status_code == 400


def test_the_settings_of_an_answer_have_the_adapters(adapted: Served) -> None:
    body = {"prompt": "hi", "model": "tiny:1b:poet"}
    assert adapted.http.post("/completion", json=body).json()["generation_settings"]["lora"] == [{"id": 1, "scale": 0.5}]
    body["lora"] = [{"id": 0, "scale": 2}]  # type: ignore[assignment]
    assert adapted.http.post("/completion", json=body).json()["generation_settings"]["lora"] == [{"id": 0, "scale": 2.0}]
