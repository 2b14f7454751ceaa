"""Prompt progress in streams."""

from __future__ import annotations

import collections
import json
from typing import Any

import pytest

from locallab.engine.request import Progress
from tests.support.fake_engine import Step, say
from tests.support.http_server import Served
from tests.support.sse import DONE, parsed

STEPS: list[Step] = [Progress(300, 40, 104, 0.5), Progress(300, 40, 300, 1.25), *say("Fine.")]
PROGRESS = [
    {"total": 300, "cache": 40, "processed": 104, "time_ms": 500},
    {"total": 300, "cache": 40, "processed": 300, "time_ms": 1250},
]
USER = {"messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"path": "/v1/chat/completions", **USER},
    "chat with logprobs": {"path": "/v1/chat/completions", "logprobs": True, **USER},
    "chat of two": {"path": "/v1/chat/completions", "n": 2, **USER},
    "completions": {"path": "/v1/completions", "prompt": "hi", "echo": True},
    "completions with logprobs": {"path": "/v1/completions", "prompt": "hi", "echo": True, "logprobs": 1},
    "llama.cpp": {"path": "/completion", "prompt": "hi"},
}


def stream(served: Served, path: str, **body: Any) -> list[Any]:
    return [event for event in parsed(served.http.post(path, json={**body, "stream": True}).text) if event != DONE]


@pytest.mark.parametrize("name", BODIES)
def test_a_stream_that_asks_is_told_before_the_answer(served: Served, name: str) -> None:
    served.script(*STEPS)
    found = stream(served, **BODIES[name], return_progress=True)
    found_progress = [event["prompt_progress"] for event in found if "prompt_progress" in event]
    assert sorted(map(str, found_progress)) == sorted(map(str, PROGRESS * BODIES[name].get("n", 1)))
    rest, plain = (collections.Counter(map(_said, each)) for each in (found, stream(served, **BODIES[name])))
    assert plain <= rest and (rest - plain).total() <= len(found_progress)
    assert "prompt_progress" in found[0]
    if "choices" in found[0]:
        assert found[0]["choices"][0].get("delta", {"role": "assistant"})["role"] == "assistant"


def test_a_response_tells_while_it_is_in_progress(served: Served) -> None:
    def respond(**more: Any) -> list[Any]:
        text = served.http.post("/v1/responses", json={"input": "hi", "stream": True, **more}).text
        return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]

    served.script(*STEPS)
    found = respond(return_progress=True)
    told = [event for event in found if "prompt_progress" in event]
    assert [event["prompt_progress"] for event in told] == PROGRESS
    assert {event["type"] for event in told} == {"response.in_progress"}
    timings = found[-1]["timings"]
    assert found[-1]["type"] == "response.completed" and timings == found[-1]["response"]["timings"]
    assert timings["predicted_n"] == found[-1]["response"]["usage"]["output_tokens"]
    assert not any("prompt_progress" in event for event in respond())


def _said(event: Any) -> str:
    return str({key: value for key, value in event.items() if key not in ("id", "created", "prompt_progress")})


@pytest.mark.parametrize("more", [{}, {"return_progress": False}, {"return_progress": None}], ids=str)
def test_a_stream_that_does_not_ask_is_not_told(served: Served, more: dict[str, Any]) -> None:
    served.script(*STEPS)
    assert not any("prompt_progress" in event for event in stream(served, "/v1/chat/completions", **USER, **more))
    assert not served.engine.submitted[-1][1].progress


def test_an_answer_in_one_piece_has_nothing_of_it(served: Served) -> None:
    served.script(*STEPS)
    answer = served.http.post("/v1/chat/completions", json={**USER, "return_progress": True}).json()
    assert "prompt_progress" not in answer and answer["choices"][0]["message"]["content"] == "Fine."
