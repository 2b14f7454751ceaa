"""Logprobs, echo and best_of over OpenAI's routes, with openai-python, streamed or not, with tools too."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.request import SamplingParams, TokenLogprob, Usage
from locallab.server.dialects.ollama.stream import ollama_logprobs
from locallab.server.dialects.openai.completions import Completion, CompletionBody
from locallab.server.dialects.openai.logprobs import Echo, chat_logprobs, event_logprobs, joined, mean, text_logprobs
from locallab.server.dialects.openai.stream import Head, ScoredCompletionFormatter
from locallab.server.inference.generation import FinishedAnswer
from locallab.server.inference.reader import TextPosition
from tests.support import tiny_gguf
from tests.support.fake_engine import TEXT, weighed
from tests.support.http_server import Served
from tests.support.openapi_check import Described
from tests.support.sse import events
from tests.support.tiny_server import tiny_server
from tests.support.token_logprob import scored

USER = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
LENGTH = len(TEXT.encode())


def test_chat(served: Served) -> None:
    answer = served.openai.chat.completions.create(model="m", messages=USER, logprobs=True, top_logprobs=2)  # type: ignore[arg-type]
    [choice] = answer.choices
    assert choice.logprobs and choice.logprobs.content
    assert bytes(byte for each in choice.logprobs.content for byte in each.bytes or []).decode() == TEXT
    first, part = choice.logprobs.content[0], choice.logprobs.content[8]
    assert (first.token, first.logprob) == ("H", -0.72) and part.token == "\\xc3"
    assert [(top.token, top.logprob, top.bytes) for top in first.top_logprobs] == [("a", 0.0, [97]), ("b", -0.01, [98])]


def test_chat_streamed_is_the_same(served: Served) -> None:
    asked: dict[str, Any] = {"model": "m", "messages": USER, "logprobs": True, "top_logprobs": 1, "n": 2}
    whole = served.openai.chat.completions.create(**asked)
    found: list[list[Any]] = [[], []]
    texts = ["", ""]
    for chunk in served.openai.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            found[choice.index] += (choice.logprobs and choice.logprobs.content) or []
    assert texts == [TEXT, TEXT]
    assert found == [choice.logprobs.content for choice in whole.choices if choice.logprobs]


def test_logprobs_come_with_their_step_though_the_text_is_held_back(served: Served) -> None:
    served.script(b"abc", b"x", b"yz")
    body = {"messages": USER, "logprobs": True, "stop": ["xyy"], "stream": True}
    chunks = [each["choices"][0] for each in events(served.http.post("/v1/chat/completions", json=body))[:-1]]
    said = [
        (c["delta"].get("content", ""), [t["token"] for t in (c.get("logprobs") or {"content": []})["content"]]) for c in chunks
    ]
    assert said == [("", []), ("abc", ["a", "b", "c"]), ("", ["x"]), ("xyz", ["y", "z"]), ("", [])]


@pytest.mark.parametrize("stream", [False, True])
def test_with_tools_every_token_is_scored(thinking: Served, stream: bool) -> None:
    said = b'<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    thinking.script(b"<think>\nno", b"\n</think>\n\n", said[:20], said[20:])
    asked: dict[str, Any] = {"model": "m", "messages": USER, "tools": TOOLS, "logprobs": True}
    if stream:
        with thinking.openai.chat.completions.stream(**asked) as run:
            answer = run.get_final_completion()
    else:
        answer = thinking.openai.chat.completions.create(**asked)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls and choice.logprobs
    assert choice.message.tool_calls[0].function.name == "add"
    found = bytes(byte for each in choice.logprobs.content or [] for byte in each.bytes or [])
    assert found == b"<think>\nno\n</think>\n\n" + said


def test_completion(served: Served) -> None:
    answer = served.openai.completions.create(model="m", prompt="hi", logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.tokens and logprobs.top_logprobs and logprobs.text_offset
    assert logprobs.tokens[0] == "H" and logprobs.tokens[8] == "bytes:\\xc3"
    assert logprobs.top_logprobs[0] == {"a": 0.0, "b": -0.01, "H": -0.72}
    assert logprobs.text_offset[:10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8] and len(logprobs.text_offset) == LENGTH


@pytest.mark.parametrize("logprobs", [0, True])
def test_completion_of_the_tokens_alone(served: Served, logprobs: Any) -> None:
    choice = served.http.post("/v1/completions", json={"prompt": "hi", "logprobs": logprobs}).json()["choices"][0]
    assert choice["logprobs"]["top_logprobs"][0] == {"H": -0.72}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hé", [256, 104, 195, 169]])
def test_echo_with_logprobs(served: Served, prompt: Any, stream: bool) -> None:
    served.script(b"ab", b"c")
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "stream": stream}
    response = served.http.post("/v1/completions", json=body)
    text, found = "", {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for part in events(response)[:-1] if stream else [response.json()]:
        text += part["choices"][0]["text"]
        found = joined(found, part["choices"][0]["logprobs"] or {key: [] for key in found})
    bos = "" if prompt == "hé" else "<s>"
    assert text == f"{bos}héabc" and [text[at] for at in found["text_offset"][-3:]] == ["a", "b", "c"]
    assert found["tokens"] == ["<s>", "h", "bytes:\\xc3", "bytes:\\xa9", "a", "b", "c"]
    assert found["token_logprobs"] == [None, -1.04, -1.95, -1.69, -0.97, -0.98, -0.99] and found["top_logprobs"][0] is None
    shift = len(bos)
    assert found["text_offset"] == [0, shift, shift + 1, shift + 1, shift + 2, shift + 3, shift + 4]


def test_a_prompt_is_scored_without_an_answer(served: Served) -> None:
    """The request of lm-evaluation-harness: is the continuation of the context the likeliest?"""
    body = {"prompt": [[256, 97, 98], [256, 99]], "echo": True, "logprobs": 1, "max_tokens": 0, "temperature": 0}
    answer = served.http.post("/v1/completions", json=body).json()
    assert [choice["text"] for choice in answer["choices"]] == ["<s>ab", "<s>c"]
    assert [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]] == [[None, -0.97, -0.98], [None, -0.99]]
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_the_lists_hold_every_token_that_usage_counts(tmp_path: Any, echo: bool, stream: bool) -> None:
    """Also the one that ends the answer: lm-evaluation-harness cuts the answer's one token off the end."""
    ids = [tiny_gguf.BOS, 100, 101, 102]
    with tiny_server(tmp_path) as tiny:
        for bias in ({}, {str(tiny_gguf.EOS): 100}):
            body = {
                "prompt": [ids, ids[:2]],
                "echo": echo,
                "logprobs": 1,
                "max_tokens": 1,
                "temperature": 0,
                "logit_bias": bias,
            }
            response = tiny.http.post("/v1/completions", json={**body, "stream": stream})
            lengths = [0, 0]
            for part in events(response)[:-1] if stream else [response.json()]:
                for choice in part["choices"]:
                    columns = choice["logprobs"] or {"tokens": []}
                    assert len({len(column) for column in columns.values()}) == 1
                    lengths[choice["index"]] += len(columns["tokens"])
            assert lengths == ([5, 3] if echo else [1, 1])


def test_best_of(served: Served) -> None:
    texts = iter(["zz", "ab", "", "yy"])
    served.engine.script = lambda prompt, params: [next(texts).encode()]
    answer = served.openai.completions.create(model="m", prompt="hi", n=2, best_of=4)
    assert [(choice.index, choice.text, choice.logprobs) for choice in answer.choices] == [(0, "ab", None), (1, "yy", None)]
    assert answer.usage and answer.usage.completion_tokens == 6 and answer.usage.prompt_tokens == 3
    assert len({params.seed for _, params in served.engine.submitted}) == 1 and len(served.engine.submitted) == 4


def test_best_of_several_prompts(served: Served) -> None:
    texts = iter(["b", "a", "y", "z"])
    served.engine.script = lambda prompt, params: [next(texts).encode()]
    answer = served.openai.completions.create(model="m", prompt=["p", "q"], best_of=2, logprobs=0, echo=True)
    assert [choice.text for choice in answer.choices] == ["pa", "qy"]


def test_as_many_as_are_written_stay_in_order(served: Served) -> None:
    texts = iter(["z", "a"])
    served.engine.script = lambda prompt, params: [next(texts).encode()]
    answer = served.openai.completions.create(model="m", prompt="p", n=2, best_of=2)
    assert [choice.text for choice in answer.choices] == ["z", "a"]


def test_who_does_not_ask_costs_nothing(served: Served) -> None:
    served.openai.chat.completions.create(model="m", messages=USER)  # type: ignore[arg-type]
    served.openai.completions.create(model="m", prompt="hi", echo=True, best_of=1)
    assert [(p.logprobs, p.prompt_logprobs) for _, p in served.engine.submitted] == [(None, False)] * 2


def test_answers_are_as_described(served: Served) -> None:
    described = Described(served.http.get("/openapi.json").json())
    for path, body in (
        ("/v1/chat/completions", {"messages": USER, "logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", {"prompt": "hi", "logprobs": 2, "echo": True}),
        ("/v1/chat/completions", {"messages": USER, "prompt_logprobs": 2, "return_token_ids": True}),
        ("/v1/completions", {"prompt": "hi", "prompt_logprobs": 2, "return_token_ids": True}),
    ):
        described.check_response(described.operation("post", path), served.http.post(path, json=body))


def test_an_echo_waits_for_its_logprobs_whatever_is_pinged() -> None:
    echo = Echo("hi", [b"h", b"i"])
    formatter = ScoredCompletionFormatter(
        Head("x", 0, "m"), CompletionBody(prompt="hi"), Completion([([1], SamplingParams())], [echo])
    )
    assert b'"text":""' in formatter.ping() and b"hi" not in formatter.ping()


@given(st.text(max_size=30), st.lists(st.integers(1, 5)), st.text(max_size=5))
def test_offsets_lead_into_the_text(text: str, cuts: list[int], before: str) -> None:
    data, pieces = text.encode("utf-8", "ignore"), []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    pieces = [*pieces, data]
    whole = before + text.encode("utf-8", "ignore").decode()
    offsets = text_logprobs(TextPosition(len(before)), [scored(piece) for piece in pieces])["text_offset"]
    assert offsets == sorted(offsets) and offsets[0] == len(before) and offsets[-1] <= len(whole)
    for at, piece in zip(offsets, pieces, strict=True):
        shown = piece.decode("utf-8", "replace")
        assert "\ufffd" in shown or whole[at:].startswith(shown)


def test_hidden_tokens_take_no_room() -> None:
    columns = text_logprobs(TextPosition(), [scored(b"a"), scored(b"<|mark|>", hidden=True), scored(b"b")])
    assert columns["text_offset"] == [0, 1, 1] and columns["tokens"][1] == "<|mark|>"


@pytest.mark.parametrize(
    ("text", "pieces", "offsets"),
    [
        ("hi you", [b"<s>", b" hi", b" you"], [0, 0, 2]),  # what the tokenizer puts in front
        ("<s>hi", [b"<s>", b"hi"], [0, 3]),
        ("hi", [b"h", b"i"], [0, 1]),
        ("h", [b"h"], [0]),
    ],
)
def test_where_the_tokens_of_a_prompt_begin(text: str, pieces: list[bytes], offsets: list[int]) -> None:
    assert Echo(text, pieces).logprobs([scored(piece) for piece in pieces[1:]])["text_offset"] == offsets


def test_json_knows_no_infinity() -> None:
    assert chat_logprobs([scored(b"a", -math.inf)])["content"][0]["logprob"] == -9999.0
    assert text_logprobs(TextPosition(), [scored(b"a", -math.inf)])["token_logprobs"] == [-9999.0]


def test_the_mean_does_not_favour_the_short() -> None:
    usage = Usage(1, 1, 0)
    long, short, empty = (
        FinishedAnswer("", "stop", usage, logprobs=tuple(weighed(t, 0) for t in ts)) for ts in (b"aaaa", b"b", b"")
    )
    assert mean(long) > mean(short) > mean(empty)


def test_each_dialect_has_its_shape() -> None:
    alone, among = scored(b"a"), TokenLogprob(7, b"\xc3", -1.0, ((8, b"b", -2.0),))
    bare, top = {"token": "a", "logprob": -1.0, "bytes": [97]}, {"token": "b", "logprob": -2.0, "bytes": [98]}
    odd = {"token": "\\xc3", "logprob": -1.0, "bytes": [195], "top_logprobs": [top]}
    assert chat_logprobs([alone, among])["content"] == [{**bare, "top_logprobs": []}, odd]
    assert ollama_logprobs([alone, among]) == [bare, odd]
    assert event_logprobs([alone, among]) == [
        {"token": "a", "logprob": -1.0, "top_logprobs": []},
        {"token": "\\xc3", "logprob": -1.0, "top_logprobs": [{"token": "b", "logprob": -2.0}]},
    ]


def test_logprobs_of_a_prompt_as_vllm_has_them(served: Served) -> None:
    def entry(token: int, rank: int) -> dict[str, Any]:
        return {"logprob": -token / 100 if rank == 9 else (97 - token) / 100, "rank": rank, "decoded_token": chr(token)}

    expected = [None, {"104": entry(104, 9), "97": entry(97, 1)}, {"105": entry(105, 9), "97": entry(97, 1)}]
    body = {"prompt": "hi", "prompt_logprobs": 1}
    [choice] = served.http.post("/v1/completions", json=body).json()["choices"]
    assert choice["prompt_logprobs"] == expected and choice["logprobs"] is None
    [choice] = served.http.post("/v1/completions", json={**body, "logprobs": 0, "prompt_logprobs": 2}).json()["choices"]
    assert len(choice["prompt_logprobs"][1]) == 3 and all(len(each) == 1 for each in choice["logprobs"]["top_logprobs"])
    answer = served.http.post("/v1/chat/completions", json={"messages": USER, "prompt_logprobs": 0}).json()
    assert answer["prompt_logprobs"][0] is None and all(len(each) == 1 for each in answer["prompt_logprobs"][1:])
    assert answer["choices"][0]["logprobs"] is None
    chat = {"messages": USER, "prompt_logprobs": 2, "logprobs": True, "top_logprobs": 1}
    [choice] = served.http.post("/v1/chat/completions", json=chat).json()["choices"]
    assert all(len(each["top_logprobs"]) == 1 for each in choice["logprobs"]["content"])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_logprobs_of_a_prompt_are_not_streamed(served: Served, path: str) -> None:
    answer = served.http.post(path, json={"prompt": "hi", "messages": USER, "prompt_logprobs": 1, "stream": True})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "prompt_logprobs"
