"""The openai package and the AI SDK, run by Node.js, against a live server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import installed_clients
from tests.support.installed_clients import CITIES, Told, is_place
from tests.support.served_process import Process

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def openai(live: Process) -> Told:
    return installed_clients.node("with_openai.mjs", live.url)


@pytest.fixture(scope="module")
def ai_sdk(live: Process) -> Told:
    return installed_clients.node("with_ai_sdk.mjs", live.url)


def is_input(found: Any) -> bool:
    return found.keys() == {"city"} and found["city"] in CITIES


def test_openai_lists_models(openai: Told) -> None:
    assert len(openai("models")) == 1


@pytest.mark.parametrize("case", ["create", "stream"])
def test_openai(openai: Told, case: str) -> None:
    answer = openai(case)
    assert answer["text"] and answer["reason"] in ("stop", "length") and 0 < answer["usage"] <= 24


def test_openai_parses(openai: Told) -> None:
    assert is_place(openai("parse"))


@pytest.mark.parametrize("case", ["tools", "streamed_tools"])
def test_openai_with_tools(openai: Told, case: str) -> None:
    call = openai(case)
    assert (call["name"], call["reason"]) == ("weather", "tool_calls") and is_input(call["arguments"])
    assert not call.get("more")


def test_openai_with_responses(openai: Told) -> None:
    answer = openai("responses")
    assert answer["text"] and answer["status"] in ("completed", "incomplete") and 0 < answer["usage"] <= 24


def test_openai_knows_an_overflow(openai: Told) -> None:
    assert openai("overflow") == {"type": "BadRequestError", "status": 400, "code": "context_length_exceeded"}


def test_openai_may_leave(openai: Told) -> None:
    assert openai("left") is True


@pytest.mark.parametrize("case", ["generate", "stream"])
def test_ai_sdk(ai_sdk: Told, case: str) -> None:
    answer = ai_sdk(case)
    assert answer["text"] and answer["reason"] in ("stop", "length") and 0 < answer["usage"] <= 24


def test_ai_sdk_with_objects(ai_sdk: Told) -> None:
    assert is_place(ai_sdk("object"))
    streamed = ai_sdk("streamed_object")
    assert is_place(streamed["object"]) and streamed["parts"] > 1


def test_ai_sdk_with_tools(ai_sdk: Told) -> None:
    answer = ai_sdk("tools")
    (call,) = answer["calls"]
    assert (answer["reason"], call["toolName"]) == ("tool-calls", "weather") and is_input(call["input"])
    streamed = ai_sdk("streamed_tools")
    (call,) = streamed["calls"]
    assert call["toolName"] == "weather" and is_input(call["input"])
    wanted = ["tool-input-start", "tool-input-delta", "tool-input-end", "tool-call", "tool-result"]
    assert [kind for kind in streamed["kinds"] if kind.startswith("tool-")] == wanted


def test_ai_sdk_goes_on_after_a_result(ai_sdk: Told) -> None:
    found = ai_sdk("steps")
    assert found["steps"][0] == "tool-calls" and found["steps"][1] in ("stop", "length")
    assert len(found["inputs"]) == 1 and is_input(found["inputs"][0])


def test_ai_sdk_knows_an_overflow(ai_sdk: Told) -> None:
    error = ai_sdk("overflow")
    assert (error["type"], error["status"], error["retryable"]) == ("AI_APICallError", 400, False)
    assert error["message"].startswith("This model's maximum context length is 4096 tokens.")
