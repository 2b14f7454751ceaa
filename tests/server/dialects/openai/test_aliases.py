"""Fields of llama.cpp's and vLLM's servers on OpenAI's routes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.http_server import Served, only_prompt

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def post(served: Served, path: str, **fields: Any) -> Any:
    body = {"prompt": "hi"} if path == TEXT else {"messages": MESSAGES}
    answer = served.http.post(path, json={**body, **fields})
    assert answer.status_code == 200, answer.text
    assert "x-locallab-notes" not in answer.headers
    return answer.json()


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_numbers_of_answers_and_tokens(served: Served, path: str) -> None:
    assert len(post(served, path, n_cmpl=2, n_predict=3)["choices"]) == 2
    assert {params.max_tokens for _, params in served.engine.submitted} == {3}
    assert len(post(served, path, n=1, n_cmpl=2, max_tokens=4, n_predict=3)["choices"]) == 1
    assert served.engine.submitted[-1][1].max_tokens == 4


def test_n_probs(served: Served) -> None:
    [choice] = post(served, CHAT, n_probs=2, max_tokens=1)["choices"]
    assert [len(each["top_logprobs"]) for each in choice["logprobs"]["content"]] == [2]
    [choice] = post(served, TEXT, n_probs=2, max_tokens=1)["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-0.72]
    for path in (CHAT, TEXT):
        assert post(served, path, n_probs=0, max_tokens=1)["choices"][0]["logprobs"] is None
    assert post(served, CHAT, logprobs=False, n_probs=2)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("name", ["thinking_token_budget", "thinking_budget_tokens", "reasoning_budget_tokens"])
def test_budgets_of_reasoning(thinking: Served, name: str) -> None:
    for value, expected in ((5, 5), (-1, None)):
        post(thinking, CHAT, **{name: value})
        found = thinking.engine.submitted[-1][1].reasoning
        assert (found and found.tokens) == expected


def test_a_prompt_without_the_head_of_an_answer(served: Served) -> None:
    post(served, CHAT)
    post(served, CHAT, add_generation_prompt=False)
    (whole, _), (cut, _) = served.engine.submitted
    assert whole == f"{cut}<|im_start|>assistant\n"
    rendered = served.http.post("/apply-template", json={"messages": MESSAGES, "add_generation_prompt": False}).json()
    assert cut.endswith(rendered["prompt"]) and rendered["prompt"].endswith("<|im_end|>\n")


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, "fgh"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, "<s>ab"),
        ({"truncate_prompt_tokens": 99}, "<s>abcdefgh"),
        ({"truncate_prompt_tokens": -1}, "<s>abcdefgh"),
        ({"truncate_prompt_tokens": 0}, "<s>abcdefgh"),
    ],
)
def test_a_prompt_is_cut(served: Served, fields: dict[str, Any], kept: str) -> None:
    answer = post(served, TEXT, prompt="abcdefgh", max_tokens=2, **fields)
    assert only_prompt(served) == kept
    assert answer["usage"]["prompt_tokens"] == len(kept.replace("<s>", "s"))


def test_a_prompt_that_is_too_long_leaves_room_for_the_answer(served: Served) -> None:
    post(served, TEXT, prompt=[97] * 600, truncate_prompt_tokens=-1, max_tokens=12)
    assert only_prompt(served) == "a" * 500


def test_a_chat_is_cut(served: Served) -> None:
    post(served, CHAT, messages=[{"role": "user", "content": "x" * 100}], truncate_prompt_tokens=20)
    post(served, CHAT, messages=[{"role": "user", "content": "x" * 100}])
    (cut, _), (whole, _) = served.engine.submitted
    assert whole.endswith(cut) and len(cut) < len(whole)


def test_the_echo_is_that_of_the_cut_prompt(served: Served) -> None:
    fields = {"prompt": "abcdefgh", "truncate_prompt_tokens": 3, "echo": True, "max_tokens": 1}
    [choice] = post(served, TEXT, **fields, logprobs=0)["choices"]
    assert choice["text"] == "fghH" and choice["logprobs"]["tokens"] == ["f", "g", "h", "H"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]


def test_a_gap_is_not_cut(served: Served) -> None:
    for path in (TEXT, "/v1/fim/completions"):
        answer = served.http.post(path, json={"prompt": "a", "suffix": "b", "truncate_prompt_tokens": 3})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "truncate_prompt_tokens"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_salt_keeps_prefixes_apart(served: Served, path: str) -> None:
    for salt in ("one", "two", "one", "", None):
        post(served, path, cache_salt=salt)
    one, two, again, empty, none = (caller.owner for caller in served.engine.callers)
    assert one == again and len({one, two, none}) == 3 and empty == none
    assert "one" not in one  # a secret that the disk cache would keep
    assert len({caller.id for caller in served.engine.callers}) == 1
    answer = served.http.post(path, json={"prompt": "hi", "messages": MESSAGES, "cache_salt": "x" * 1025})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "cache_salt"
