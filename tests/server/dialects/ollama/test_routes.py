"""Ollama's dialect, with the real client and by hand."""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
from typing import Any

import ollama
import pytest
from hypothesis import given

from locallab.engine.request import Constraint, SamplingParams
from locallab.errors import EngineFailure
from locallab.server.dialects.ollama.stream import ChatFormatter, Clock
from tests.support.dialect_requests import ARGUMENTS, CALL, PARAMETERS, RAW, SAID, THOUGHT, cut, cuts, news, turn
from tests.support.fake_engine import FIM, TEXT, say
from tests.support.http_server import Serve, Served
from tests.support.ollama_api import USER, chat, lines
from tests.support.openapi_check import Described

TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": PARAMETERS}}]
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def generate(served: Served, **body: Any) -> Any:
    return served.http.post("/api/generate", json={"model": "any", "prompt": "hi", "stream": False, **body})


def asked(served: Served, response: Any) -> tuple[str, SamplingParams]:
    """Return the prompt and the parameters of the last request."""
    assert response.status_code == 200, response.text
    return served.engine.submitted[-1]


def test_chat(thinking: Served, client: ollama.Client) -> None:
    answer = client.chat("any", USER)
    assert answer.message.role == "assistant" and answer.message.content == TEXT and answer.message.thinking is None
    assert answer.model == "any" and answer.done is True and answer.done_reason == "stop"
    said, params = thinking.engine.submitted[-1]
    assert said == "<s><user>hi\n<assistant>" and params == SamplingParams()
    assert answer.prompt_eval_count == len(said) - 3 + 1 and answer.eval_count == len(TEXT.encode())
    assert answer.created_at is not None and datetime.datetime.fromisoformat(answer.created_at.replace("Z", "+00:00")).tzinfo


def test_durations_are_measured(thinking: Served, client: ollama.Client) -> None:
    for answer in (client.chat("any", USER), list(client.chat("any", USER, stream=True))[-1]):
        total, *parts = (getattr(answer, name) for name in DURATIONS)
        assert all(part > 0 for part in parts) and sum(parts) <= total + 3  # a nanosecond at least for each of them


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_stream_is_the_whole_answer(thinking: Served, client: ollama.Client, size: int) -> None:
    thinking.script(*say(RAW, size))
    pieces = list(client.chat("any", USER, tools=TOOLS, think=True, stream=True))
    whole = client.chat("any", USER, tools=TOOLS, think=True)
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content == SAID
    assert "".join(piece.message.thinking or "" for piece in pieces) == whole.message.thinking == THOUGHT
    calls = [call for piece in pieces for call in piece.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", ARGUMENTS)] * 2
    assert whole.message.tool_calls == calls
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].done_reason == whole.done_reason == "stop" and pieces[-1].eval_count == whole.eval_count


@given(cuts)
def test_however_the_text_is_cut_the_stream_says_the_same(places: list[int]) -> None:
    streamed, taken = ChatFormatter(turn(), "m", Clock()), ChatFormatter(turn(), "m", Clock())
    body = b""
    for items in news(cut(RAW, places)):
        body += streamed.encode(items)
        taken.take(items)
    messages = [line["message"] for line in lines((body + streamed.ping() + streamed.end()).decode())]
    calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    assert calls == [{"index": index, "name": "weather", "arguments": ARGUMENTS} for index in range(2)]
    said = {name: "".join(message.get(name, "") for message in messages) for name in ("content", "thinking")}
    whole = taken.whole()["message"]
    assert said == {"content": SAID, "thinking": THOUGHT} == {name: whole[name] for name in said}
    assert [call["function"] for call in whole["tool_calls"]] == calls


def test_a_stream_is_lines_and_the_default(thinking: Served) -> None:
    response = thinking.http.post("/api/chat", json={"messages": USER})
    assert response.headers["content-type"] == "application/x-ndjson"
    *pieces, last = lines(response.text)
    assert all(set(piece) == {"model", "created_at", "message", "done"} for piece in pieces)
    assert last["message"] == {"role": "assistant", "content": ""} and set(DURATIONS) < set(last)
    for path, body in (("/api/chat", {"messages": USER}), ("/api/generate", {"prompt": "hi"})):
        response = thinking.http.post(path, json={**body, "stream": False})
        assert response.headers["content-type"] == "application/json"


def test_generate(thinking: Served, client: ollama.Client) -> None:
    thinking.script(*say(f"<think>{THOUGHT}</think>yes"))
    answer = client.generate("any", "hi", system="be kind", options={"num_predict": 100})
    assert (answer.response, answer.thinking) == ("yes", THOUGHT)
    assert thinking.engine.submitted[-1][0] == "<s><system>be kind\n<user>hi\n<assistant>"
    assert "".join(piece.response or "" for piece in client.generate("any", "hi", stream=True)) == "yes"


def tokens_of(pieces: Any) -> bytes:
    """Join the tokens that have logprobs."""
    return bytes(byte for piece in pieces for each in piece.get("logprobs") or () for byte in each["bytes"])


def test_logprobs(thinking: Served, client: ollama.Client) -> None:
    answer = client.chat("any", USER, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None and thinking.engine.submitted[-1][1].logprobs == 2
    assert "".join(each.token for each in answer.logprobs[:5]) == TEXT[:5] and len(answer.logprobs) == len(TEXT.encode())
    assert [(top.token, top.logprob) for top in answer.logprobs[0].top_logprobs or ()] == [("a", 0.0), ("b", -0.01)]
    first = chat(thinking, logprobs=True, top_logprobs=1).json()["logprobs"][0]
    top = [{"token": "a", "logprob": 0.0, "bytes": [97]}]
    assert first == {"token": "H", "logprob": -0.72, "bytes": [72], "top_logprobs": top}
    assert generate(thinking, logprobs=True).json()["logprobs"][0] == {"token": "H", "logprob": -0.72, "bytes": [72]}


@pytest.mark.parametrize("wish", [{}, {"logprobs": False}, {"logprobs": None, "top_logprobs": 0}])
def test_no_logprobs(thinking: Served, wish: dict[str, Any]) -> None:
    assert "logprobs" not in chat(thinking, **wish).json() and "logprobs" not in generate(thinking, stream=True, **wish).text
    assert [params.logprobs for _, params in thinking.engine.submitted] == [None, None]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_logprobs_in_a_stream_are_those_of_the_whole(thinking: Served, client: ollama.Client, size: int) -> None:
    thinking.script(*say(RAW, size))
    wish: Any = {"tools": TOOLS, "think": True, "logprobs": True, "top_logprobs": 1}
    whole = client.chat("any", USER, **wish)
    pieces = list(client.chat("any", USER, stream=True, **wish))
    assert [each for piece in pieces for each in piece.logprobs or ()] == whole.logprobs
    assert "".join(piece.message.content or "" for piece in pieces) == SAID and whole.message.tool_calls
    assert len(whole.message.tool_calls) == len([call for piece in pieces for call in piece.message.tool_calls or ()]) == 2
    assert (
        tokens_of([chat(thinking, **wish).json()])
        == tokens_of(lines(chat(thinking, **{**wish, "stream": True}).text))
        == RAW.encode()
    )


def test_logprobs_come_with_their_step_though_the_text_is_held_back(thinking: Served) -> None:
    thinking.script(b"abc", b"x", b"yz")
    pieces = lines(generate(thinking, stream=True, logprobs=True, options={"stop": ["xyy"]}).text)
    said = [(piece["response"], tokens_of([piece]), piece["done"]) for piece in pieces]
    assert said == [("abc", b"abc", False), ("", b"x", False), ("xyz", b"yz", False), ("", b"", True)]


def test_logprobs_without_a_template(serve: Serve) -> None:
    with serve(engine={"fim": FIM}) as served:
        for wish in ({"raw": True}, {"suffix": "x"}, {"format": "json"}):
            whole = generate(served, logprobs=True, **wish).json()
            assert tokens_of([whole]) == whole["response"].encode() == TEXT.encode()
            pieces = lines(generate(served, logprobs=True, stream=True, **wish).text)
            assert [each for piece in pieces for each in piece.get("logprobs", ())] == whole["logprobs"]


def test_answers_with_logprobs_are_as_described(thinking: Served) -> None:
    described = Described(thinking.http.get("/openapi.json").json())
    for path, post in (("/api/chat", chat), ("/api/generate", generate)):
        for count in (0, 2):
            response = post(thinking, logprobs=True, top_logprobs=count)
            described.check_response(described.operation("post", path), response)


def test_raw_is_the_prompt_as_it_stands(thinking: Served) -> None:
    thinking.script(*say(RAW, 5))
    response = generate(thinking, raw=True)
    said, params = asked(thinking, response)
    assert said == "<s>hi" and params.max_tokens == 512 and response.json()["response"] == RAW
    assert asked(thinking, generate(thinking, raw=True, options={"num_predict": -1}))[1].max_tokens is None


def test_suffix(serve: Serve) -> None:
    with serve(engine={"fim": FIM}) as served:
        said, params = asked(served, generate(served, prompt="def f(", suffix="return x"))
        assert said == "<PRE>def f(<SUF>return x<MID>" and params.max_tokens == 512
        assert asked(served, generate(served, prompt="", suffix="x"))[0] == "<PRE><SUF>x<MID>"
        assert served.http.post("/api/show", json={"model": "tiny:1b"}).json()["capabilities"] == ["completion", "insert"]


def test_suffix_without_tokens_for_it(thinking: Served) -> None:
    response = generate(thinking, suffix="x")
    assert response.status_code == 400 and "suffix: model 'tiny:1b' has no tokens" in response.json()["error"]


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "limit": ({"num_predict": 5}, {"max_tokens": 5}),
    "no limit": ({"num_predict": -1}, {"max_tokens": None}),
    "to the end of the context": ({"num_predict": -2}, {"max_tokens": None}),
    "sampling": (
        {"temperature": 0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.7, "seed": 7},
        {"temperature": 0.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.7, "seed": 7},
    ),
    "penalties": (
        {"repeat_penalty": 1.2, "repeat_last_n": 33, "presence_penalty": 1.5, "frequency_penalty": 1},
        {"repeat_penalty": 1.2, "penalty_window": 33, "presence_penalty": 1.5, "frequency_penalty": 1.0},
    ),
    "stop": ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
    "what loading needs": ({"num_gpu": 1, "num_thread": 8, "numa": False, "num_keep": 5, "num_batch": 2, "mirostat": 0}, {}),
    "null": ({"temperature": None, "stop": None, "num_ctx": None}, {}),
}


@pytest.mark.parametrize(("options", "params"), OPTIONS.values(), ids=OPTIONS)
def test_options(served: Served, options: dict[str, Any], params: dict[str, Any]) -> None:
    assert asked(served, chat(served, options=options))[1] == SamplingParams(**params)


def test_formats(served: Served) -> None:
    assert asked(served, chat(served, format="json"))[1].constraint == Constraint("json_object", "", "format")
    assert asked(served, generate(served, format="json", raw=True))[1].constraint == Constraint("json_object", "", "format")
    assert len(served.engine.prepared) == 2
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    constraint = asked(served, generate(served, format=schema))[1].constraint
    assert constraint == Constraint("json_schema", json.dumps({**schema, "additionalProperties": False}), "format")
    assert asked(served, chat(served, format=""))[1].constraint is None


def test_thinking(thinking: Served) -> None:
    assert asked(thinking, chat(thinking, think=False))[0].endswith("<assistant><think></think>")
    assert asked(thinking, chat(thinking, think=True))[0].endswith("hi\n<assistant>")
    assert asked(thinking, chat(thinking, think="low"))[0].endswith("<effort>low\n<assistant>")


def test_a_model_that_does_not_think(served: Served) -> None:
    assert chat(served, think=False).status_code == 200
    for post in (chat, generate):
        response = post(served, think=True)
        assert response.status_code == 400 and "does not support thinking" in response.json()["error"]
    assert len(served.engine.submitted) == 1


def test_a_conversation_with_calls_goes_on(thinking: Served) -> None:
    call = {"function": {"name": "weather", "arguments": ARGUMENTS}}
    clock = {"function": {"name": "clock", "arguments": {}}}
    messages = [
        *USER,
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call, clock]},
        {"role": "tool", "content": "noon", "tool_name": "clock"},
        {"role": "tool", "content": "wet"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "dry", "tool_name": "weather"},
    ]
    said, _ = asked(thinking, chat(thinking, messages=messages, tools=TOOLS))
    arguments = json.dumps(ARGUMENTS, ensure_ascii=False)
    assert said.startswith(
        f"<s><user>hi\n<assistant>(hm)[weather {arguments} call00000][clock {{}} call00001]\n"
        f"<tool>wet[call00000]\n<tool>noon[call00001]\n<assistant>[weather {arguments} call00002]\n<tool>dry[call00002]\n<can>"
    )


def test_a_call_that_is_cut_off_is_left_out(thinking: Served, client: ollama.Client) -> None:
    thinking.script(*say(f"I look.{CALL}{CALL}"))
    options = {"num_predict": len(f"I look.{CALL}".encode()) + 60}
    whole = client.chat("any", USER, tools=TOOLS, options=options)
    pieces = list(client.chat("any", USER, tools=TOOLS, options=options, stream=True))
    assert whole.done_reason == pieces[-1].done_reason == "length"
    assert len(whole.message.tool_calls or ()) == len([p for p in pieces if p.message.tool_calls]) == 1


def test_what_is_not_heeded_is_told(thinking: Served) -> None:
    response = chat(thinking, options={"num_ctx": 8192}, keep_alive="5m", tools=[*TOOLS, {"type": "web_search"}])
    notes = response.headers["x-locallab-notes"].split("; ")
    assert [note.partition(":")[0] for note in notes] == ["tools[1]", "options.num_ctx", "keep_alive"]
    assert "4096 tokens" in notes[1]
    for harmless in ({"keep_alive": -1}, {"keep_alive": "-1"}, {"options": {"num_ctx": 4096}}):
        assert "x-locallab-notes" not in chat(thinking, **harmless).headers


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "template": ("/api/generate", {"template": "{{ .Prompt }}"}, "template: is not supported"),
    "context": ("/api/generate", {"context": [1]}, "context: is not supported"),
    "images": ("/api/generate", {"images": ["x"]}, "images: this model takes no images"),
    "system with raw": ("/api/generate", {"raw": True, "system": "x"}, "system: cannot be combined with raw"),
    "think with raw": ("/api/generate", {"raw": True, "think": True}, "think: cannot be combined with raw"),
    "suffix with raw": ("/api/generate", {"raw": True, "suffix": "x"}, "suffix: cannot be combined with raw"),
    "system with suffix": ("/api/generate", {"suffix": "x", "system": "x"}, "system: cannot be combined with suffix"),
    "format": ("/api/generate", {"format": "xml"}, 'format: expected "json" or a JSON schema'),
    "alternatives alone": ("/api/chat", {"top_logprobs": 2}, "top_logprobs: needs logprobs: true"),
    "alternatives to nothing": ("/api/generate", {"logprobs": False, "top_logprobs": 2}, "top_logprobs: needs logprobs"),
    "too many": ("/api/chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs: must be at least 0 and at most 20"),
    "type of logprobs": ("/api/generate", {"logprobs": 5}, "logprobs: expected bool, got int"),
    "image": ("/api/chat", {"messages": [{"role": "user", "content": "", "images": ["x"]}]}, "messages[0].images: this model"),
    "messages": ("/api/chat", {"messages": "hi"}, "messages: expected a list of messages"),
    "role": ("/api/chat", {"messages": [{"role": "king"}]}, "messages[0].role: unknown role"),
    "keep_alive": ("/api/chat", {"keep_alive": "soon"}, "keep_alive: expected seconds or a duration"),
    "option": ("/api/chat", {"options": {"top_p": 2}}, "options.top_p: must be above 0 and at most 1, got 2"),
    "type of an option": ("/api/chat", {"options": {"num_predict": "5"}}, "options.num_predict: expected int, got str"),
    "mirostat": ("/api/chat", {"options": {"mirostat": 3}}, "options.mirostat: must be at least 0 and at most 2, got 3"),
    "bias": ("/api/chat", {"options": {"logit_bias": {"x": True}}}, "options.logit_bias: a bias must be"),
    "limit": ("/api/chat", {"options": {"num_predict": -3}}, "options.num_predict: must be at least -2"),
    "no model to show": ("/api/show", {"model": ""}, "model: is missing"),
}


@pytest.mark.parametrize(("path", "body", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_request(thinking: Served, path: str, body: dict[str, Any], message: str) -> None:
    response = thinking.http.post(path, json={"model": "any", "prompt": "hi", "messages": USER, **body})
    assert response.status_code == 400 and set(response.json()) == {"error"}
    assert response.json()["error"].startswith(message)
    assert thinking.engine.submitted == []


def test_other_errors(serve: Serve) -> None:
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serve(api_key="secret", strict_models=True))
        assert served.http.get("/api/tags").json() == {"error": served.http.get("/api/ps").json()["error"]}
        client = ollama.Client(served.url, headers={"authorization": "Bearer secret"})
        stack.callback(client.close)
        for call in (lambda: client.chat("tinny:1b", USER), lambda: client.show("tinny:1b"), lambda: client.pull("tinny:1b")):
            with pytest.raises(ollama.ResponseError, match="model 'tinny:1b' not found; did you mean tiny:1b") as error:
                call()
            assert error.value.status_code == 404
        served.engine.full = True
        with pytest.raises(ollama.ResponseError, match="busy") as error:
            client.chat("tiny:1b", USER)
        assert error.value.status_code == 503


def test_a_prompt_that_is_too_long(thinking: Served, client: ollama.Client) -> None:
    for stream in (False, True):
        with pytest.raises(
            ollama.ResponseError, match=r"maximum context length is 4096 tokens. However, your request has 50"
        ) as error:
            list(client.generate("any", "x" * 5000, stream=stream))
        assert error.value.status_code == 400


def test_a_failure_in_mid_stream(thinking: Served, client: ollama.Client) -> None:
    go = threading.Event()
    thinking.script(*say("<think></think>a"), go, EngineFailure("decode failed"))
    with pytest.raises(ollama.ResponseError, match="decode failed"):
        for _ in client.chat("any", USER, stream=True):
            go.set()


def test_who_answers(thinking: Served) -> None:
    assert thinking.http.get("/api/version").json()["version"].count(".") == 2
    for path in ("/api/tags", "/api/ps", "/api/version"):
        assert thinking.http.head(path).status_code == 200
    missing = thinking.http.post("/api/create", json={})
    assert missing.status_code == 404 and missing.json() == {"error": "no such path: POST /api/create"}
