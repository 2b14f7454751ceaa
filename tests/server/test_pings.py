"""Pings: events without news, in the shape of the dialect, while the model is silent."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import ollama
import pytest

from locallab.engine.request import SamplingParams
from locallab.server import streaming
from locallab.server.dialects.anthropic.stream import AnthropicFormatter
from locallab.server.dialects.ollama.stream import OllamaFormatter
from locallab.server.dialects.openai.stream import OpenAIFormatter
from locallab.server.dialects.responses.stream import ResponsesFormatter
from tests.support.fake_engine import TEXT, say
from tests.support.http_server import Served
from tests.support.sse import DONE

USER: list[Any] = [{"role": "user", "content": "hi"}]
THINKING = "<think>so</think>"


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "IDLE", 0.01)


class Reader:
    """Reads a stream as it comes. `until(says)` reads pieces until `says` is true of one, and returns them all."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._rest = ""

    def __iter__(self) -> Iterator[Any]:
        for text in self._pieces:
            self._rest += text
            *whole, self._rest = self._rest.replace("\n\n", "\n").split("\n")
            for line in whole:
                assert line.startswith(("data: ", "event: ", "{")), "a comment, which some clients parse"
                if not line.startswith("event: "):
                    data = line.removeprefix("data: ")
                    yield data if data == DONE else json.loads(data)

    def until(self, says: Callable[[Any], bool]) -> list[Any]:
        found = []
        for piece in self:
            found.append(piece)
            if says(piece):
                return found
        raise AssertionError(f"ended without it: {found}")


ROUTES: dict[str, tuple[dict[str, Any], Callable[[Any], Any], Callable[[Any], bool]]] = {
    "/generate": ({"prompt": "hi"}, lambda e: e["response"], lambda e: e == {"response": ""}),
    "/chat": ({"messages": USER}, lambda e: e["choices"][0]["delta"].get("content"), lambda e: e["choices"][0]["delta"] == {}),
    "/v1/chat/completions": (
        {"messages": USER},
        lambda e: e["choices"][0]["delta"].get("content"),
        lambda e: e["choices"][0]["delta"] == {} and e["choices"][0]["finish_reason"] is None,
    ),
    "/v1/completions": (
        {"prompt": "hi"},
        lambda e: e["choices"][0]["text"],
        lambda e: e["choices"][0]["text"] == "" and e["choices"][0]["finish_reason"] is None,
    ),
    "/api/v1/assistant/chat": ({"prompt": "hi"}, lambda e: e.get("text"), lambda e: e == {"type": "token", "text": ""}),
    "/v1/messages": (
        {"messages": USER, "max_tokens": 99},
        lambda e: e.get("delta", {}).get("text"),
        lambda e: e == {"type": "ping"},
    ),
    "/v1/responses": ({"input": "hi"}, lambda e: e.get("delta"), lambda e: e["type"] == "response.in_progress"),
    "/api/chat": ({"messages": USER}, lambda e: e["message"]["content"], lambda e: e["message"]["content"] == ""),
    "/api/generate": ({"prompt": "hi"}, lambda e: e["response"], lambda e: e["response"] == "" and not e["done"]),
}


@pytest.mark.parametrize("path", ROUTES)
def test_pings_before_the_first_token_and_between_two(served: Served, path: str) -> None:
    body, text_of, is_ping = ROUTES[path]
    go, then = threading.Event(), threading.Event()
    served.script(go, b"a", then, b"b")
    with served.http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        reader = Reader(response.iter_text())
        before = reader.until(is_ping) + reader.until(is_ping)
        assert "".join(text_of(event) or "" for event in before) == ""
        go.set()
        said = reader.until(lambda event: text_of(event) == "a")
        reader.until(is_ping)
        reader.until(is_ping)
        then.set()
        rest = [event for event in reader if event != DONE]
        assert "b" in [text_of(event) for event in rest if "choices" not in event or event["choices"]]
    opened = [event for event in before + said + rest if event.get("type") in ("message_start", "response.created")]
    assert len(opened) == (path in ("/v1/messages", "/v1/responses"))
    assert not opened or opened[0] is before[0]


def test_a_role_comes_first_and_once(served: Served) -> None:
    go = threading.Event()
    served.script(go, b"a")
    with served.http.stream("POST", "/v1/chat/completions", json={"messages": USER, "stream": True}) as response:
        reader = Reader(response.iter_text())
        first, *_ = reader.until(lambda event: event["choices"][0]["delta"] == {})
        go.set()
        rest = [event for event in reader if event != DONE]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert not any("role" in event["choices"][0]["delta"] for event in rest)


def test_pings_while_a_call_is_held_back(thinking: Served) -> None:
    """Ollama's calls are sent when they are complete: tokens come, but nothing is sent."""
    go = threading.Event()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    thinking.script(*say('<tool_call>\n{"name": "f", "arguments": {"a": "'), go, *say('"}}\n</tool_call>'))
    with thinking.http.stream("POST", "/api/chat", json={"messages": USER, "tools": [tool]}) as response:
        reader = Reader(response.iter_text())
        reader.until(lambda line: line["message"] == {"role": "assistant", "content": ""})
        go.set()
        assert [line["message"]["tool_calls"] for line in reader if "tool_calls" in line["message"]]


@pytest.fixture
def slow(thinking: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """Make every answer wait for a ping before it begins, and for another one in its middle."""
    waiting: list[threading.Event] = []

    def watched(ping: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        def watched_ping(chunks: Any) -> bytes:
            if waiting:
                waiting.pop(0).set()
            return ping(chunks)

        return watched_ping

    for kind in (OpenAIFormatter, AnthropicFormatter, ResponsesFormatter, OllamaFormatter):
        monkeypatch.setattr(kind, "ping", watched(kind.ping))

    def script(prompt: list[int], params: SamplingParams) -> list[Any]:
        first, second = threading.Event(), threading.Event()
        waiting[:] = [first, second]
        return [first, *say(THINKING), second, *say(TEXT, 9)]

    thinking.engine.script = script
    return thinking


def test_real_clients_do_not_mind(slow: Served) -> None:
    with slow.openai.responses.stream(model="m", input="hi") as responses:
        assert [event.type for event in responses].count("response.in_progress") > 1
        assert responses.get_final_response().output_text == TEXT
    chat = slow.openai.chat.completions.create(model="m", messages=USER, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chat) == TEXT
    texts = slow.openai.completions.create(model="m", prompt="hi", stream=True)
    assert "".join(chunk.choices[0].text for chunk in texts) == THINKING + TEXT
    with contextlib.ExitStack() as stack:
        claude = stack.enter_context(anthropic.Anthropic(base_url=slow.url, api_key="x"))
        asked: Any = {"model": "m", "max_tokens": 99, "messages": USER, "thinking": {"type": "adaptive"}}
        messages = stack.enter_context(claude.messages.stream(**asked))
        assert "".join(messages.text_stream) == TEXT
        llama = stack.enter_context(contextlib.closing(ollama.Client(slow.url)))
        assert "".join(piece.message.content or "" for piece in llama.chat("m", USER, stream=True)) == TEXT
