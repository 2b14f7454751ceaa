"""Messages have every field that Anthropic's API publishes, with values that its own types allow."""

from __future__ import annotations

import json
from typing import Any

import pydantic
from anthropic import types

from tests.support.http_server import Served

ASKED: dict[str, Any] = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
USAGE = {
    *("input_tokens", "output_tokens", "cache_creation", "cache_creation_input_tokens", "cache_read_input_tokens"),
    *("server_tool_use", "service_tier"),
}


def check(message: Any) -> None:
    pydantic.TypeAdapter(types.Message).validate_python(message, strict=True)
    assert message.keys() == {
        *("id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "container", "usage"),
    }
    assert message["usage"].keys() == USAGE and message["usage"]["service_tier"] == "standard"


def test_a_whole_message(served: Served) -> None:
    check(served.http.post("/v1/messages", json=ASKED).json())


def test_the_events_of_a_stream(served: Served) -> None:
    lines = served.http.post("/v1/messages", json={**ASKED, "stream": True}).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    for event in events:
        pydantic.TypeAdapter(types.RawMessageStreamEvent).validate_python(event, strict=True)
    check(events[0]["message"])
