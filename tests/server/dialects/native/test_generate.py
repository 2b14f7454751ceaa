from __future__ import annotations

import threading
from typing import Any

import pytest

from locallab import __version__
from locallab.engine.request import SamplingParams
from tests.support.fake_engine import TEXT
from tests.support.http_server import Serve, Served
from tests.support.sse import DONE, events

USER = [{"role": "user", "content": "hi"}]
LENGTH = len(TEXT.encode())


def usage(prompt: int, answer: int, cached: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def test_generate(served: Served) -> None:
    served.engine.cached = 2
    response = served.http.post("/generate", json={"prompt": "hi"})
    assert response.status_code == 200
    expected = {"response": TEXT, "model": "tiny:1b", "finish_reason": "stop", "usage": usage(3, LENGTH, cached=2)}
    assert response.json() == expected
    assert served.engine.submitted == [("<s>hi", SamplingParams(max_tokens=512))]


def test_generate_streamed(served: Served) -> None:
    *texts, last, done = events(served.http.post("/generate", json={"prompt": "hi", "stream": True}))
    assert all(set(event) == {"response"} and event["response"] for event in texts) and len(texts) > 3
    assert "".join(event["response"] for event in texts) == TEXT
    assert last == {"response": "", "model": "tiny:1b", "finish_reason": "stop", "usage": usage(3, LENGTH)}
    assert done == DONE


def test_generate_is_raw_unless_the_template_is_asked_for(served: Served) -> None:
    for body in ({}, {"chat_template": False}, {"chat_template": True}):
        served.http.post("/generate", json={"prompt": "<s>hi", **body})
    chat = "<s><|im_start|>user\n<s>hi<|im_end|>\n<|im_start|>assistant\n"
    assert [prompt for prompt, _ in served.engine.submitted] == ["<s>hi", "<s>hi", chat]


def test_opening_token_of_the_template_is_not_doubled(serve: Serve) -> None:
    with serve(engine={"template": "{{ bos_token }}{{ messages[0].content }}"}) as served:
        served.http.post("/chat", json={"messages": USER})
        assert served.engine.submitted[0][0] == "<s>hi"


def test_chat(served: Served) -> None:
    response = served.http.post("/chat", json={"messages": USER})
    body = response.json()
    assert response.status_code == 200
    message = {"role": "assistant", "content": TEXT}
    assert body["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
    prompt = "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert served.engine.submitted == [(prompt, SamplingParams())]
    assert (body["model"], body["finish_reason"]) == ("tiny:1b", "stop")
    assert body["usage"] == usage(len(prompt) - 2, LENGTH)


def test_chat_streamed(served: Served) -> None:
    first, *chunks, last, done = events(served.http.post("/chat", json={"messages": USER, "stream": True}))
    assert {chunk["object"] for chunk in (first, *chunks, last)} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in (first, *chunks, last)}) == 1
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == TEXT
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert last["usage"]["completion_tokens"] == LENGTH and all("usage" not in chunk for chunk in chunks)
    assert done == DONE


FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "all null": (
        dict.fromkeys(["temperature", "top_p", "top_k", "stop", "seed", "max_length", "logit_bias", "do_sample", "stream"]),
        {},
    ),
    "temperature": ({"temperature": 1}, {"temperature": 1.0}),
    "greedy": ({"do_sample": False, "temperature": 0.5}, {"temperature": 0.0}),
    "sampling": ({"do_sample": True, "temperature": 0.5}, {"temperature": 0.5}),
    "top_p": ({"top_p": 0.5}, {"top_p": 0.5}),
    "top_k": ({"top_k": 5}, {"top_k": 5}),
    "top_k -1 is off": ({"top_k": -1}, {"top_k": 0}),
    "min_p": ({"min_p": 0.1}, {"min_p": 0.1}),
    "typical_p": ({"typical_p": 0.5}, {"typical_p": 0.5}),
    "repetition_penalty": ({"repetition_penalty": 1.1}, {"repeat_penalty": 1.1}),
    "repeat_penalty": ({"repeat_penalty": 1.1}, {"repeat_penalty": 1.1}),
    "penalties": ({"frequency_penalty": -2, "presence_penalty": 2}, {"frequency_penalty": -2.0, "presence_penalty": 2.0}),
    "penalty_window": ({"penalty_window": -1}, {"penalty_window": -1}),
    "repeat_last_n": ({"repeat_last_n": 0}, {"penalty_window": 0}),
    "logit_bias": ({"logit_bias": {"5": -100, "6": 1.5}}, {"logit_bias": ((5, -100.0), (6, 1.5))}),
    "seed": ({"seed": 7}, {"seed": 7}),
    "seed -1 draws one": ({"seed": -1}, {}),
    "long seed": ({"seed": 2**40 + 7}, {"seed": 7}),
    "negative seed": ({"seed": -2}, {"seed": 2**32 - 2}),
    "ignore_eos": ({"ignore_eos": True}, {"ignore_eos": True}),
    "stop string": ({"stop": "a"}, {"stop": ("a",)}),
    "stop list": ({"stop": list("abcdef")}, {"stop": tuple("abcdef")}),
    "empty stop": ({"stop": ""}, {}),
    "empty stops": ({"stop": ["", "a"]}, {"stop": ("a",)}),
    "stop_token_ids": ({"stop_token_ids": [1, 2]}, {"stop_token_ids": (1, 2)}),
    "max_length": ({"max_length": 5, "max_tokens": 6}, {"max_tokens": 5}),
    "max_tokens": ({"max_length": None, "max_tokens": 6}, {"max_tokens": 6}),
    "no limit": ({"max_length": -1}, {"max_tokens": None}),
    "unknown": ({"frobnicate": {"a": [1]}}, {}),
}


@pytest.mark.parametrize(("fields", "expected"), FIELDS.values(), ids=FIELDS)
def test_fields(served: Served, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert served.http.post("/generate", json={"prompt": "hi", **fields}).status_code == 200
    assert served.http.post("/chat", json={"messages": USER, **fields}).status_code == 200
    wanted = [SamplingParams(**{"max_tokens": 512, **expected}), SamplingParams(**expected)]
    assert [params for _, params in served.engine.submitted] == wanted


def test_limit_of_0_is_answered_without_the_engine(served: Served) -> None:
    body = served.http.post("/generate", json={"prompt": "hi", "max_length": 0}).json()
    assert (body["response"], body["finish_reason"], body["usage"]) == ("", "length", usage(3, 0))
    assert served.engine.submitted == []
    assert served.http.post("/generate", json={"prompt": "x" * 600, "max_length": 0}).status_code == 400


def test_configured_limit(serve: Serve) -> None:
    with serve(completion_tokens=4) as served:
        body = served.http.post("/generate", json={"prompt": "hi"}).json()
        assert (body["response"], body["finish_reason"]) == ("Hell", "length")


def test_stop_string(served: Served) -> None:
    body = served.http.post("/generate", json={"prompt": "hi", "stop": ["!", "ö"]}).json()
    assert (body["response"], body["finish_reason"]) == ("Hello, w", "stop")


def test_long_prompt_is_tokenized_elsewhere(serve: Serve) -> None:
    with serve(engine={"context": 100_000}) as served:
        assert served.http.post("/generate", json={"prompt": "x" * 20_000}).json()["usage"]["prompt_tokens"] == 20_001


def test_info(served: Served) -> None:
    body = served.http.get("/system/info").json()
    assert body["service"] == "locallab" and body["version"] == __version__ and body["uptime_seconds"] >= 0
    assert body["system"]["memory"]["total_bytes"] > 0 and "gpu_offload" in body["build"]
    assert body["model"]["name"] == "tiny:1b" and body["model"]["stats"]["running"] == 0


def test_health(served: Served) -> None:
    health = served.http.get("/health")
    assert health.json() == {"status": "healthy", "service": "locallab", "version": __version__, "model": "tiny:1b"}
    assert served.http.get("/health/ready").json()["status"] == "ready"
    assert served.http.get("/health/live").json()["status"] == "alive"


def test_without_a_model(serve: Serve) -> None:
    with serve(load=None) as served:
        assert served.http.get("/health").status_code == 200
        ready = served.http.get("/health/ready")
        assert ready.status_code == 503 and ready.headers["retry-after"] == "2"
        assert served.http.get("/system/info").json()["model"] is None
        response = served.http.post("/generate", json={"prompt": "hi"})
        assert response.status_code == 503 and "no model is loaded" in response.json()["detail"]
        assert "retry-after" in response.headers
        assert served.http.post("/models/load", json={"model_id": "first"}).json()["name"] == "tiny:1b"
        assert served.http.post("/generate", json={"prompt": "hi"}).status_code == 200


def test_stopping_ends_streams(serve: Serve) -> None:
    with serve() as served:
        served.script(b"Hi", threading.Event())
        with served.http.stream("POST", "/generate", json={"prompt": "hi", "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines) == 'data: {"response":"Hi"}'
            threading.Thread(target=served.pool.close).start()
            assert [line for line in lines if line] == [
                'data: {"detail":"the engine was closed before the answer was complete"}'
            ]
