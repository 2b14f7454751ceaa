"""/tokenize, /detokenize and /apply-template over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.http_server import Served
from tests.support.tiny_embedding_gguf import CLS, SEP, token
from tests.support.tiny_server import Tiny, tiny_server

WORLDS = [token("hello"), token("world"), token("##s")]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with tiny_server(tmp_path_factory.mktemp("models")) as served:
        yield served


def test_a_text_becomes_tokens_and_they_the_text(tiny: Tiny) -> None:
    answer = tiny.post("/tokenize", model="embed", content="hello worlds")
    assert answer == {"tokens": WORLDS, "count": 3}
    assert tiny.post("/detokenize", model="embed", tokens=WORLDS)["content"].strip() == "hello worlds"
    text = "Grüße,世界🙂"
    tokens = tiny.post("/tokenize", model="decoder", content=text)["tokens"]
    assert tiny.post("/detokenize", model="decoder", tokens=tokens)["content"] == text


def test_with_what_the_model_wants_around_it(tiny: Tiny) -> None:
    assert tiny.post("/tokenize", model="embed", content="hello", add_special=True)["tokens"] == [CLS, token("hello"), SEP]
    assert tiny.post("/tokenize", model="embed", content="", add_special=None) == {"tokens": [], "count": 0}


def test_markup_counts_unless_it_is_not_to(tiny: Tiny) -> None:
    assert tiny.post("/tokenize", model="embed", content="[SEP]")["tokens"] == [SEP]
    assert SEP not in tiny.post("/tokenize", model="embed", content="[SEP]", parse_special=False)["tokens"]


def test_what_each_token_stands_for(tiny: Tiny) -> None:
    tokens = tiny.post("/tokenize", model="embed", content="worlds", add_special=True, with_pieces=True)["tokens"]
    assert tokens == [
        {"id": CLS, "piece": "[CLS]"},
        {"id": token("world"), "piece": " world"},
        {"id": token("##s"), "piece": "s"},
        {"id": SEP, "piece": "[SEP]"},
    ]
    pieces = [each["piece"] for each in tiny.post("/tokenize", content="aü", with_pieces=True)["tokens"]]
    assert pieces[-3:] == ["a", [0xC3], [0xBC]], "bytes that are no character of their own"


def test_texts_and_tokens_in_a_row(tiny: Tiny) -> None:
    answer = tiny.post("/tokenize", model="embed", content=["hello", SEP, "worlds"], add_special=True)
    assert answer["tokens"] == [CLS, token("hello"), SEP, SEP, *WORLDS[1:]]


def test_a_long_text(tiny: Tiny) -> None:
    assert tiny.post("/tokenize", model="embed", content="hello worlds " * 2000)["count"] == 6000


@pytest.mark.parametrize("special", [True, False])
def test_a_prompt_as_vllm_has_it(tiny: Tiny, special: bool) -> None:
    answer = tiny.post("/tokenize", model="embed", prompt="hello worlds", add_special_tokens=special)
    tokens = [CLS, *WORLDS, SEP] if special else WORLDS
    assert answer == {"count": len(tokens), "max_model_len": 64, "tokens": tokens, "token_strs": None}


def test_a_prompt_has_special_tokens_by_default_and_may_tell_texts(tiny: Tiny) -> None:
    answer = tiny.post("/tokenize", model="embed", prompt=["hello", SEP], return_token_strs=True)
    assert answer["tokens"] == [CLS, token("hello"), SEP, SEP] and answer["token_strs"][0] == "[CLS]"
    assert tiny.post("/detokenize", model="embed", tokens=WORLDS)["prompt"].strip() == "hello worlds"


def test_a_conversation_has_the_tokens_that_a_chat_reads(thinking: Served) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER]}
    answer = thinking.http.post("/tokenize", json=body).json()
    usage = thinking.http.post("/v1/chat/completions", json=body).json()["usage"]
    prompt = thinking.http.post("/apply-template", json=body).json()["prompt"]
    assert answer["count"] == len(answer["tokens"]) == usage["prompt_tokens"] and answer["max_model_len"] == 4096
    assert "weather" in thinking.http.post("/detokenize", json={"tokens": answer["tokens"]}).json()["content"]
    bare = thinking.http.post("/tokenize", json={**body, "add_special_tokens": False}).json()["tokens"]
    assert thinking.engine.detokenize(bare) == prompt


@pytest.mark.parametrize("path", ["/v1/chat/completions/input_tokens", "/chat/completions/input_tokens"])
def test_the_tokens_of_a_chat_are_counted(thinking: Served, path: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER, {"type": "web_search"}]}
    usage = thinking.http.post("/v1/chat/completions", json=body).json()["usage"]
    response = thinking.http.post(path, json=body)
    assert response.json() == {"object": "response.input_tokens", "input_tokens": usage["prompt_tokens"]}
    assert "web_search" in response.headers["x-locallab-notes"]
    assert len(thinking.engine.submitted) == 1
    assert thinking.http.post(path, json={**body, "messages": [{"role": "user", "content": "x" * 5000}]}).status_code == 200


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "no content": ("/tokenize", {}, "content: is missing"),
    "null": ("/tokenize", {"content": None}, "content: is missing"),
    "a number": ("/tokenize", {"content": 3}, "content: expected a string"),
    "a list of lists": ("/tokenize", {"content": [[1]]}, "content: expected a string"),
    "no tokens": ("/detokenize", {}, "tokens: is missing"),
    "unknown tokens": ("/detokenize", {"tokens": [25], "model": "embed"}, "tokens: token ids must be from 0 to 24"),
    "negative ones": ("/detokenize", {"tokens": [-1]}, "tokens: token ids must be from 0"),
    "two of them": ("/tokenize", {"content": "a", "prompt": "b"}, "prompt: cannot be combined with content"),
    "prompt and messages": ("/tokenize", {"messages": [], "prompt": "b"}, "messages: cannot be combined with prompt"),
    "a wrong prompt": ("/tokenize", {"prompt": [None]}, "prompt: expected a string"),
    "a wrong conversation": ("/tokenize", {"messages": "hi"}, "messages: "),
    "no messages": ("/apply-template", {}, "messages: is missing"),
}


@pytest.mark.parametrize(("path", "body", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(tiny: Tiny, path: str, body: dict[str, Any], reason: str) -> None:
    assert reason in tiny.refused(path, **body)["detail"]


def test_a_conversation_as_the_model_reads_it(served: Served) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    prompt = served.http.post("/apply-template", json={"messages": messages}).json()["prompt"]
    served.http.post("/v1/chat/completions", json={"messages": messages})
    assert served.engine.submitted[0][0].removeprefix("<s>") == prompt.removeprefix("<s>")
    assert "Be kind." in prompt and prompt.count("hi") == 1


def test_tools_are_part_of_it(served: Served) -> None:
    def prompt(**more: Any) -> httpx.Response:
        return served.http.post("/apply-template", json={"messages": [{"role": "user", "content": "hi"}], **more})

    assert '"weather"' in prompt(tools=[WEATHER]).json()["prompt"]
    assert '"weather"' not in prompt(tools=[WEATHER], tool_choice="none").json()["prompt"]
    assert prompt(tools=[WEATHER], tool_choice={"function": {"name": "sun"}}).status_code == 400
    left_out = prompt(tools=[WEATHER, {"type": "web_search"}])
    assert "web_search" in left_out.headers["x-locallab-notes"]


def test_long_texts_and_their_pieces(tiny: Tiny) -> None:
    text = "hello,ü\n" * 10_000
    answer = tiny.post("/tokenize", model="decoder", content=text, with_pieces=True)
    tokens = tiny.post("/tokenize", model="decoder", content=text)["tokens"]
    assert [each["id"] for each in answer["tokens"]] == tokens and answer["count"] == len(tokens) > 50_000
    assert tiny.post("/detokenize", model="decoder", tokens=tokens)["content"].strip() == text.strip()
    pieces = tiny.post("/tokenize", model="decoder", content=text[:8], with_pieces=True)["tokens"]
    assert answer["tokens"][: len(pieces) - 1] == pieces[:-1]
