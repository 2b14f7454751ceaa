"""LangChain, litellm, instructor and locallab-client, in an environment of their own, against a live server. The model is too
small for sense: what counts is that they understand its answers, and that these keep to what was asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import installed_clients
from tests.support.installed_clients import CITIES, Told, is_place
from tests.support.served_process import Process

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def langchain(live: Process) -> Told:
    return installed_clients.python("with_langchain.py", live.url)


@pytest.fixture(scope="module")
def litellm(live: Process) -> Told:
    return installed_clients.python("with_litellm.py", live.url)


@pytest.fixture(scope="module")
def instructor(live: Process) -> Told:
    return installed_clients.python("with_instructor.py", live.url)


@pytest.fixture(scope="module")
def locallab(live: Process) -> Told:
    return installed_clients.python("with_locallab.py", live.url)


def is_weather(call: dict[str, Any]) -> bool:
    return call["name"] == "weather" and call["args"].keys() == {"city"} and call["args"]["city"] in CITIES


@pytest.mark.parametrize("case", ["invoke", "stream"])
def test_langchain(langchain: Told, case: str) -> None:
    answer = langchain(case)
    usage = answer["usage"]
    assert answer["text"] and answer["reason"] in ("stop", "length")
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"] and 0 < usage["output_tokens"] <= 24
    assert case == "invoke" or answer["chunks"] > 3


@pytest.mark.parametrize("case", ["structured", "structured_by_a_call"])
def test_langchain_with_structured_output(langchain: Told, case: str) -> None:
    found = langchain(case)
    assert found["type"] == "Place" and is_place(found)


def test_langchain_with_tools(langchain: Told) -> None:
    (call,) = langchain("required")
    assert is_weather(call) or (call["name"], call["args"]) == ("time", {})
    (call,) = langchain("named")
    assert (call["name"], call["args"]) == ("time", {})
    streamed = langchain("streamed_call")
    (call,) = streamed["calls"]
    assert is_weather(call) and streamed["reason"] == "tool_calls"
    assert langchain("result") == "str"


def test_langchain_with_several_answers(langchain: Told) -> None:
    assert langchain("batch") == [2, 2]


@pytest.mark.parametrize("case", ["completion", "stream", "anthropic", "ollama"])
def test_litellm(litellm: Told, case: str) -> None:
    answer = litellm(case)
    assert answer["text"] and answer["reason"] in ("stop", "length")
    assert 0 < answer.get("usage", 24) <= 24


@pytest.mark.parametrize("case", ["tools", "streamed_tools"])
def test_litellm_with_tools(litellm: Told, case: str) -> None:
    call = litellm(case)
    assert is_weather({"name": call["name"], "args": json.loads(call["arguments"])}) and call["reason"] == "tool_calls"


def test_litellm_with_structured_output(litellm: Told) -> None:
    found = json.loads(litellm("structured"))
    assert found.keys() == {"city", "coastal"} and is_place({**found, "people": 0})


@pytest.mark.parametrize("case", ["overflow", "streamed_overflow"])
def test_litellm_knows_an_overflow(litellm: Told, case: str) -> None:
    kind, message = litellm(case)
    assert kind == "ContextWindowExceededError" and "4096 tokens" in message


def test_litellm_does_not_ask_again_what_is_wrong(litellm: Told) -> None:
    kind, message = litellm("wrong")
    assert kind == "BadRequestError" and "min_p" in message


@pytest.mark.parametrize("case", ["tools", "strict_tools", "json_schema", "streamed"])
def test_instructor(instructor: Told, case: str) -> None:
    found = instructor(case)
    assert is_place(found)
    assert found.get("parts", 2) > 1 if case == "streamed" else found["type"] == "Place"


FORMS = ["sync", "async"]


@pytest.mark.parametrize("form", FORMS)
def test_locallab_generates(locallab: Told, form: str) -> None:
    text, chat = locallab("generate")[form], locallab("chat")[form]["choices"][0]["message"]["content"]
    assert text.startswith(" 9, 10, 11")
    for case in ("stream_generate", "generate_in_a_stream"):
        pieces = locallab(case)[form]
        assert "".join(pieces) == text.strip() and len(pieces) > 5
    chunks = locallab("stream_chat")[form]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == chat and len(chunks) > 5
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    responses = locallab("batch_generate")[form]["responses"]
    assert responses[0] == text and len(responses) == 2


@pytest.mark.parametrize("form", FORMS)
def test_locallab_manages_models(locallab: Told, form: str) -> None:
    assert [locallab(case)[form] for case in ("health_check", "unload_model", "load_model")] == [True] * 3
    current = locallab("get_current_model")[form]["name"]
    assert current in [model["name"] for model in locallab("list_models")[form]]
    assert locallab("get_system_info")[form]["active_model"] == current == locallab("system_info")["active_model"]


@pytest.mark.parametrize("form", FORMS)
def test_locallab_ends_in_time_and_tells_of_errors(locallab: Told, form: str) -> None:
    assert len(locallab("generate_for_a_time")[form]) < 1000  # of 4,000 tokens
    (error,) = locallab("stream_of_an_unknown_model")[form]
    assert error.startswith("\nError: ") and "no/such" in error
