"""The forms of answers that locallab-client reads, with its headers and bodies; and nobody else gets them."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from locallab.engine.request import TokenEvent, Usage
from locallab.errors import EngineClosed
from locallab.server.dialects.native.client_lines import TextLines
from tests.support.fake_engine import TEXT
from tests.support.http_server import Serve, Served
from tests.support.sse import events

AGENT = "Python/3.11 aiohttp/3.14.5"
HEADERS = {"content-type": "application/json", "user-agent": AGENT}
ASKED: dict[str, Any] = {"model_id": None, "stream": True, "max_length": 100, "temperature": 0.7, "top_p": 0.9}
ASKED |= {"repetition_penalty": 1.15, "top_k": 80}
GENERATE: dict[str, Any] = {"prompt": "hi", "do_sample": True, **ASKED}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], **ASKED}


def post(served: Served, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    with httpx.Client(base_url=served.url) as http:
        http.headers.clear()
        content = b"" if body is None else json.dumps(body).encode()
        return http.post(path, content=content, headers=HEADERS if headers is None else headers)


def client_reads(lines: str) -> list[str]:
    """Return what stream_generate yields."""
    texts = [line.strip().removeprefix("data: ") for line in lines.split("\n") if line.strip()]
    if texts[-1:] == ["[DONE]"]:
        texts.pop()
    assert not any(text == "[DONE]" or text.startswith("Error:") for text in texts)
    return texts


def test_text(served: Served) -> None:
    for more in ({}, {"max_time": 60}):
        response = post(served, "/generate", {**GENERATE, **more})
        assert response.text.endswith("data: [DONE]\n\n")
        assert "".join(client_reads(response.text)) == TEXT.strip()


@given(st.lists(st.text("aö \n\t\u2003\x85:[]") | st.sampled_from(["Error:", "[DONE]", "data: "])))
@example(["[DONE]"])
@example(["Error:", " no"])
@example(["Error: no"])
@example(["a", " ", "[DONE]"])
@example(["data: ", "data: x"])
def test_no_text_is_lost(pieces: list[str]) -> None:
    formatter = TextLines("m")
    usage = Usage(1, 1, 0)
    sent = b"".join(formatter.encode([(0, TokenEvent(piece))]) for piece in pieces)
    sent += formatter.encode([(0, TokenEvent("", finish_reason="stop", usage=usage))]) + formatter.end()
    assert "".join(client_reads(sent.decode())) == "".join(pieces).replace("\n", "\x85").strip()


def test_text_of_an_error_comes_behind_what_was_held() -> None:
    formatter = TextLines("m")
    sent = formatter.encode([(0, TokenEvent("a b"))]) + formatter.ping() + formatter.fail(EngineClosed("it\nis closed"))
    assert sent == b"\ndata: a b\n\ndata: Error: it is closed\n\n"


def test_chat(served: Served) -> None:
    response = post(served, "/chat", CHAT)
    assert response.headers["content-type"] == "application/x-ndjson"
    *chunks, done = [json.loads(line) for line in response.text.splitlines()]
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == TEXT
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and chunks[-1]["usage"]["total_tokens"] > 0


def test_chat_that_fails(serve: Serve) -> None:
    with serve() as served:
        served.script(b"Hi", EngineClosed("it is\nclosed"))
        lines = post(served, "/chat", CHAT).text.splitlines()
        assert json.loads(lines[-2])["choices"][0]["delta"] == {"content": "Hi"} and lines[-1] == "Error: it is closed"


OTHERS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "another library": (GENERATE, {**HEADERS, "user-agent": "python-requests/2.32"}),
    "aiohttp with a type for this request": (GENERATE, {"user-agent": AGENT, "content-type": "application/json"}),
    "aiohttp without a type": (GENERATE, {"user-agent": AGENT}),
    "another field": ({**GENERATE, "seed": 1}, HEADERS),
    "fewer fields": ({"prompt": "hi", "stream": True}, HEADERS),
}


@pytest.mark.parametrize(("body", "headers"), OTHERS.values(), ids=OTHERS)
def test_others_get_events_of_json(served: Served, body: dict[str, Any], headers: dict[str, str]) -> None:
    *texts, _ = events(post(served, "/generate", body, headers))
    assert "".join(event["response"] for event in texts) == TEXT


def test_statuses(serve: Serve) -> None:
    with serve() as served:
        for _ in range(2):  # what is not loaded is unloaded
            assert post(served, "/models/unload", None).json()["status"] == "Model unloaded successfully"
        loaded = post(served, "/models/load", {"model_id": "other:2b"}).json()
        assert loaded["status"] == "success" and loaded["name"] == "other:2b" and loaded["loaded"] is True
        assert served.http.post("/models/load", json={"model_id": "other:2b"}).json()["status"] == "ready"
        assert served.http.post("/models/unload").json()["status"] == "unloaded"


def test_time_that_is_over(served: Served) -> None:
    forever = threading.Event()
    served.script(b"Hi", forever)
    try:
        for path, body in (("/generate", {"prompt": "hi"}), ("/generate/batch", {"prompts": ["hi", "ho"]})):
            answer = served.http.post(path, json={**body, "max_time": 0.2}).json()
            assert answer.get("finish_reason", "length") == "length" and set(answer.get("finish_reasons", ())) <= {"length"}
        chat = served.http.post("/chat", json={"messages": CHAT["messages"], "max_time": 0.2}).json()
        assert chat["choices"][0] == {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi"},
            "finish_reason": "length",
        }
    finally:
        forever.set()
    assert served.http.post("/generate", json={"prompt": "hi", "max_time": -1}).status_code == 400


def test_batch(served: Served) -> None:
    served.engine.script = lambda prompt, params: [bytes(prompt[-3:])]
    answer = served.http.post("/generate/batch", json={"prompts": ["one", "two"], "temperature": 0}).json()
    assert answer["responses"] == ["one", "two"] and answer["finish_reasons"] == ["stop", "stop"]
    assert answer["model"] == "tiny:1b" and answer["usage"]["prompt_tokens"] == 8
    assert [params.temperature for _, params in served.engine.submitted] == [0, 0]
    served.http.post("/generate/batch", json={"prompts": ["one"], "chat_template": True})
    assert served.engine.submitted[-1][0].startswith("<s><|im_start|>user\none")


@pytest.mark.parametrize("body", [{}, {"prompts": []}, {"prompts": ["a"] * 2049}, {"prompts": ["a"], "stream": True}])
def test_batch_that_is_refused(served: Served, body: dict[str, Any]) -> None:
    answer = served.http.post("/generate/batch", json=body)
    field = "stream" if "stream" in body else "prompts"
    assert answer.status_code == 400 and answer.json()["detail"].startswith(field)
