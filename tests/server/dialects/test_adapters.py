"""LoRA adapters in every dialect: chosen by the model's name or by the field `lora`, listed as models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from locallab.engine.request import SamplingParams
from tests.support.http_server import Served, start_in
from tests.support.openapi_check import Described

USER = [{"role": "user", "content": "hi"}]
PIRATE, POET = "tiny:1b:pirate", "tiny:1b:poet"

ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chats": ("/v1/chat/completions", {"messages": USER}),
    "completions": ("/v1/completions", {"prompt": "hi"}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "llama.cpp": ("/completion", {"prompt": "hi"}),
    "native": ("/generate", {"prompt": "hi"}),
    "native batches": ("/generate/batch", {"prompts": ["hi"]}),
    "native chats": ("/chat", {"messages": USER}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "anthropic": ("/v1/messages", {"messages": USER, "max_tokens": 5}),
    "ollama": ("/api/generate", {"prompt": "hi", "stream": False}),
    "ollama chats": ("/api/chat", {"messages": USER, "stream": False}),
    "assistant": ("/api/v1/assistant/chat", {"prompt": "hi"}),
}


@pytest.fixture(scope="module")
def shared_adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with start_in(tmp_path_factory.mktemp("adapters"))(adapters=["pirate", "poet"], engine={"context": 8192}) as served:
        yield served


@pytest.fixture
def adapted(shared_adapted: Served) -> Served:
    shared_adapted.engine.reset()
    shared_adapted.engine.activate([])
    return shared_adapted


def named(path: str, model: str | None) -> dict[str, Any]:
    return {"model_id" if path in ("/generate", "/generate/batch", "/chat") else "model": model} if model else {}


def asked(served: Served, path: str, body: dict[str, Any]) -> tuple[SamplingParams, dict[str, Any]]:
    response = served.http.post(path, json=body)
    assert response.status_code == 200, response.text
    return served.engine.submitted[-1][1], response.json()


@pytest.mark.parametrize(("path", "body"), [*ROUTES.values(), *OTHERS.values()], ids=[*ROUTES, *OTHERS])
def test_the_name_of_the_model_chooses_an_adapter(adapted: Served, path: str, body: dict[str, Any]) -> None:
    params, answer = asked(adapted, path, {**body, **named(path, PIRATE)})
    assert params.lora == (("pirate", 0.5),)
    assert answer.get("model", PIRATE) == PIRATE
    params, _ = asked(adapted, path, {**body, **named(path, "first:poet")})
    assert params.lora == (("poet", 0.5),)
    for model in ("tiny:1b", None):
        assert asked(adapted, path, {**body, **named(path, model)})[0].lora is None


@pytest.mark.parametrize(("path", "body"), ROUTES.values(), ids=ROUTES)
def test_the_field_lora_chooses_by_id(adapted: Served, path: str, body: dict[str, Any]) -> None:
    lora = [{"id": 1, "scale": 0.25}, {"id": 0}]
    for model in ("tiny:1b", PIRATE):
        params, _ = asked(adapted, path, {**body, **named(path, model), "lora": lora})
        assert params.lora == ((1, 0.25), (0, 0.0))
    for nothing in ([], None):
        assert asked(adapted, path, {**body, **named(path, PIRATE), "lora": nothing})[0].lora == (("pirate", 0.5),)


@pytest.mark.parametrize(("path", "body"), ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_choice_is_named(adapted: Served, path: str, body: dict[str, Any], stream: bool) -> None:
    more = {"stream": True} if stream and path != "/generate/batch" else {}
    for lora, reason in (
        ([{"id": 2, "scale": 1}], "this model has no adapter 2; it has 0 (pirate), 1 (poet)"),
        ([{"id": 0, "scale": 1000}], "a scale must be between -100 and 100"),
        ([{"scale": 1}], "missing"),
        ("pirate", "expected array"),
    ):
        response = adapted.http.post(path, json={**body, **more, "lora": lora})
        assert response.status_code in (400, 422) and "lora" in response.text and reason in response.text, response.text
    assert adapted.engine.submitted == []


def test_options_of_ollama_have_it_too(adapted: Served) -> None:
    path, body = OTHERS["ollama"]
    params, _ = asked(adapted, path, {**body, "options": {"lora": [{"id": 0, "scale": 1}]}})
    assert params.lora == ((0, 1.0),)


def test_tags_of_ollama_do_not_hide_adapters(adapted: Served) -> None:
    path, body = OTHERS["ollama"]
    assert asked(adapted, path, {**body, "model": f"{PIRATE}:latest"})[0].lora == (("pirate", 0.5),)


def test_openai_lists_them_as_models(adapted: Served) -> None:
    listed = adapted.http.get("/v1/models").json()["data"]
    assert [(each["id"], each.get("parent")) for each in listed][:3] == [
        ("tiny:1b", None),
        (PIRATE, "tiny:1b"),
        (POET, "tiny:1b"),
    ]
    card = adapted.http.get(f"/v1/models/{PIRATE}").json()
    assert (card["id"], card["parent"], card["status"]) == (PIRATE, "tiny:1b", "ready")
    of_anthropic = adapted.http.get("/v1/models", headers={"anthropic-version": "1"}).json()["data"]
    assert of_anthropic[1]["id"] == PIRATE
    Described(adapted.http.get("/openapi.json").json())


def test_ollama_lists_them_as_models(adapted: Served) -> None:
    listed = {each["name"]: each for each in adapted.http.get("/api/tags").json()["models"]}
    assert listed[PIRATE]["details"]["parent_model"] == "tiny:1b" and listed["tiny:1b"]["details"]["parent_model"] == ""
    assert len({each["digest"] for each in listed.values()}) == len(listed)
    assert adapted.http.post("/api/show", json={"model": PIRATE}).json()["details"]["parent_model"] == "tiny:1b"


def test_the_native_routes_list_them_as_models(adapted: Served) -> None:
    listed = {each["name"]: each for each in adapted.http.get("/models/available").json()["models"]}
    assert (listed[PIRATE]["parent"], listed[PIRATE]["loaded"]) == ("tiny:1b", True) and "parent" not in listed["tiny:1b"]
    standing = adapted.http.get(f"/models/status/{PIRATE}").json()
    assert (standing["name"], standing["parent"], standing["status"]) == (PIRATE, "tiny:1b", "ready")


def test_usage_and_metrics_name_the_adapters(adapted: Served) -> None:
    for model, lora in ((PIRATE, None), ("tiny:1b", [{"id": 0, "scale": 1}, {"id": 1, "scale": 1}]), ("tiny:1b", None)):
        asked(adapted, "/v1/completions", {"prompt": "hi", "model": model, "lora": lora})
    models = {each["model"] for each in adapted.http.get("/api/v1/usage").json()["usage"]}
    assert {PIRATE, "tiny:1b:pirate+poet", "tiny:1b"} <= models
    adapted.engine.totals.adapter_tokens["pirate"] = 7
    text = adapted.http.get("/metrics").text
    assert 'locallab_adapter_completion_tokens_total{adapter="pirate",model="tiny:1b"} 7.0' in text
    assert 'locallab_adapter_switches_total{model="tiny:1b"} 0.0' in text
