from __future__ import annotations

import pytest

from tests.support.fake_engine import TEXT
from tests.support.http_server import Served, only_prompt
from tests.support.sse import events

LENGTH = len(TEXT.encode())


@pytest.mark.parametrize("stream", [False, True])
def test_completions_with_a_suffix(coder: Served, stream: bool) -> None:
    answer = coder.openai.completions.create(model="m", prompt="a = ", suffix="\nb", max_tokens=30, stream=stream)  # type: ignore[call-overload]
    text = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    assert text == TEXT and only_prompt(coder) == "<PRE>a = <SUF>\nb<MID>" and coder.engine.urgent == [True]


def test_markup_in_code_is_code(coder: Served) -> None:
    coder.openai.completions.create(model="m", prompt="<s>", suffix="x")
    assert only_prompt(coder) == "<PRE><s><SUF>x<MID>"
    assert coder.engine.urgent == [True]


def test_several_prompts_with_one_suffix(coder: Served) -> None:
    answer = coder.openai.completions.create(model="m", prompt=["a", "b"], suffix="x", n=2)
    assert [prompt for prompt, _ in coder.engine.submitted] == ["<PRE>a<SUF>x<MID>"] * 2 + ["<PRE>b<SUF>x<MID>"] * 2
    assert len(answer.choices) == 4


def test_a_suffix_goes_with_text_only(coder: Served) -> None:
    response = coder.http.post("/v1/completions", json={"prompt": [1, 2], "suffix": "x"})
    assert response.status_code == 400 and response.json()["error"]["param"] == "suffix"


@pytest.mark.parametrize("path", ["/v1/fim/completions", "/fim/completions"])
def test_fim_completions(coder: Served, path: str) -> None:
    body = {"model": "codestral", "prompt": "def f(", "suffix": "return 1", "max_tokens": 64, "random_seed": 7, "stop": ["zz"]}
    answer = coder.http.post(path, json=body).json()
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": TEXT} and choice["text"] == TEXT
    assert (choice["finish_reason"], answer["model"], answer["usage"]["completion_tokens"]) == ("stop", "codestral", LENGTH)
    [(prompt, params)] = coder.engine.submitted
    assert prompt == "<PRE>def f(<SUF>return 1<MID>" and coder.engine.urgent == [True]
    assert (params.seed, params.max_tokens, params.stop) == (7, 64, ("zz",))


def test_fim_completions_streamed_as_editors_read_them(coder: Served) -> None:
    body = {"prompt": "a", "suffix": None, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, finish, usage, done = events(coder.http.post("/v1/fim/completions", json=body))
    assert only_prompt(coder) == "<PRE>a<SUF><MID>" and done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == TEXT
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
    assert finish["choices"][0]["finish_reason"] == "stop" and usage["usage"]["completion_tokens"] == LENGTH


def test_completions_without_v1_are_openais(coder: Served) -> None:
    answer = coder.http.post("/completions", json={"prompt": "hi", "n_predict": 4}).json()
    assert answer["choices"][0]["text"] == TEXT[:4]
