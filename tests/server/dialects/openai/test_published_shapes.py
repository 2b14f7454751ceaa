"""Answers have every field that OpenAI's API publishes as always present, with values that its own types allow."""

from __future__ import annotations

from typing import Any

import openai.types as published
import pydantic
import pytest
from openai.types import chat, responses

from tests.support.http_server import Served
from tests.support.sse import DONE, events

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
HEAD = {"id", "object", "created", "model", "choices", "system_fingerprint"}
CHAT = HEAD | {"service_tier"}
RESPONSE = {
    *("id", "object", "created_at", "status", "background", "completed_at", "error", "incomplete_details", "instructions"),
    *("max_output_tokens", "max_tool_calls", "model", "output", "parallel_tool_calls", "previous_response_id"),
    *("prompt_cache_key", "reasoning", "safety_identifier", "service_tier", "store", "temperature", "text", "tool_choice"),
    *("tools", "top_logprobs", "top_p", "truncation", "usage", "user", "metadata"),
}


def strict(kind: type[pydantic.BaseModel], body: Any) -> None:
    """Check a body against a published type, without conversions of its values."""
    pydantic.TypeAdapter(kind).validate_python(body, strict=True)


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"tools": [TOOL]}], ids=["text", "logprobs", "tools"])
def test_chat(served: Served, more: dict[str, Any]) -> None:
    body = served.http.post("/v1/chat/completions", json={"messages": USER, **more}).json()
    strict(chat.ChatCompletion, body)
    assert CHAT | {"usage"} <= body.keys() and body["service_tier"] == "default"
    (choice,) = body["choices"]
    assert choice.keys() >= {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"].keys() == {"role", "content", "refusal", "annotations"}
    assert choice["message"]["refusal"] is None and choice["message"]["annotations"] == []
    assert bool(choice["logprobs"]) == ("logprobs" in more)


def test_chat_with_a_call_and_reasoning(thinking: Served) -> None:
    thinking.script(b'<think>hm</think><tool_call>{"name": "f", "arguments": {}}</tool_call>')
    body = thinking.http.post("/v1/chat/completions", json={"messages": USER, "tools": [TOOL]}).json()
    strict(chat.ChatCompletion, body)
    message = body["choices"][0]["message"]
    assert message["content"] is None and message["refusal"] is None and message["tool_calls"]


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"tools": [TOOL]}], ids=["text", "logprobs", "tools"])
@pytest.mark.parametrize("usage", [True, False])
def test_chunks(served: Served, more: dict[str, Any], usage: bool) -> None:
    asked = {"messages": USER, "stream": True, "stream_options": {"include_usage": usage}, **more}
    chunks = events(served.http.post("/v1/chat/completions", json=asked))
    assert chunks.pop() == DONE
    for chunk in chunks:
        strict(chat.ChatCompletionChunk, chunk)
        assert chunk.keys() >= CHAT
        assert all(each.keys() == {"index", "delta", "logprobs", "finish_reason"} for each in chunk["choices"])
    told = [chunk["usage"] for chunk in chunks if "usage" in chunk]
    assert len(told) == (len(chunks) if usage else 0) and not any(told[:-1])
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert len({chunk["system_fingerprint"] for chunk in chunks}) == 1


def test_completions(served: Served) -> None:
    asked: dict[str, Any] = {"prompt": "hi", "logprobs": 1}
    body = served.http.post("/v1/completions", json=asked).json()
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, _ = events(served.http.post("/v1/completions", json=asked))
    strict(published.Completion, body)
    for each in (body, *chunks):
        assert each.keys() >= HEAD | {"usage"} and each["system_fingerprint"] == body["system_fingerprint"]
        assert all(choice.keys() >= {"index", "text", "logprobs", "finish_reason"} for choice in each["choices"])


def test_responses(served: Served) -> None:
    asked = {"input": "hi", "text": {"verbosity": "low"}, "metadata": {"a": "b"}}
    body = served.http.post("/v1/responses", json=asked).json()
    assert body.keys() >= RESPONSE
    assert body["text"] == {"format": {"type": "text"}, "verbosity": "low"} and body["service_tier"] == "default"
    strict(responses.Response, {**body, "created_at": float(body["created_at"]), "completed_at": float(body["completed_at"])})
