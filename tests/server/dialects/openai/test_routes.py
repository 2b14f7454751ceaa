from __future__ import annotations

from typing import Any

import openai
import pytest

from locallab.engine.request import SamplingParams
from locallab.server.dialects.openai.chat import ChatBody
from locallab.server.inference.prompt import prompts
from tests.support.fake_engine import TEXT, say
from tests.support.http_server import Serve, Served
from tests.support.sse import DONE, events

USER: list[Any] = [{"role": "user", "content": "hi"}]
LENGTH = len(TEXT.encode())


def test_chat(served: Served) -> None:
    served.engine.cached = 4
    answer = served.openai.chat.completions.create(model="gpt-4o", messages=USER)
    assert (answer.object, answer.model) == ("chat.completion", "gpt-4o")
    assert answer.choices[0].message.content == TEXT and answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage and answer.usage.prompt_tokens_details and answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + LENGTH
    assert served.engine.submitted[0][1] == SamplingParams()


def test_chat_streamed(served: Served) -> None:
    chunks = list(served.openai.chat.completions.create(model="tiny:1b", messages=USER, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert all(chunk.usage is None for chunk in chunks)


def test_order_of_a_stream(served: Served) -> None:
    body = {"messages": USER, "stream": True, "stream_options": {"include_usage": True}}
    first, *texts, finish, usage, done = events(served.http.post("/v1/chat/completions", json=body))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(list(chunk["choices"][0]["delta"]) == ["content"] and chunk["usage"] is None for chunk in texts)
    assert finish["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == LENGTH
    assert done == DONE
    assert len({(c["id"], c["created"], c["model"]) for c in (first, *texts, finish, usage)}) == 1


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"n": 2}])
@pytest.mark.parametrize(
    ("path", "asked"), [("chat/completions", {"messages": USER}), ("completions", {"prompt": ["hi", "ho"]})]
)
def test_usage_in_every_chunk(served: Served, path: str, asked: dict[str, Any], more: dict[str, Any]) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last, done = events(
        served.http.post(f"/v1/{path}", json={**asked, **more, "stream": True, "stream_options": options})
    )
    assert done == DONE and last["choices"] == []
    answers: dict[int, list[dict[str, Any]]] = {}
    for chunk in chunks:
        answers.setdefault(chunk["choices"][0]["index"], []).append(chunk["usage"])
    for usages in answers.values():
        counts = [usage["completion_tokens"] for usage in usages]
        assert counts == sorted(counts) and counts[0] < counts[-1] == LENGTH
        assert {usage["prompt_tokens"] for usage in usages} == {usages[-1]["prompt_tokens"]} != {0}
    assert last["usage"]["completion_tokens"] == LENGTH * len(answers)


@pytest.mark.parametrize("options", [{}, {"include_usage": None}, {"include_usage": True}])
@pytest.mark.parametrize(("path", "asked"), [("chat/completions", {"messages": USER}), ("completions", {"prompt": "hi"})])
def test_stream_options_are_for_streams(served: Served, path: str, asked: dict[str, Any], options: Any) -> None:
    for more in ({}, {"stream": False}):
        answer = served.http.post(f"/v1/{path}", json={**asked, **more, "stream_options": options})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "stream_options"
    assert served.http.post(f"/v1/{path}", json={**asked, "stream_options": None}).status_code == 200


def test_what_vllm_has_in_every_answer(served: Served) -> None:
    chat = served.http.post("/v1/chat/completions", json={"messages": USER, "stop": "w"}).json()
    text = served.http.post("/v1/completions", json={"prompt": "hi"}).json()
    assert chat["choices"][0]["stop_reason"] == "w" and text["choices"][0]["stop_reason"] is None
    for places in ((chat, chat["choices"][0]), (text["choices"][0],) * 2):
        assert (places[0]["prompt_logprobs"], places[0]["prompt_token_ids"], places[1]["token_ids"]) == (None, None, None)


@pytest.mark.parametrize("options", [None, {}, {"include_usage": None}, {"include_usage": False}])
def test_no_usage_unless_asked_for(served: Served, options: Any) -> None:
    body = {"messages": USER, "stream": True, "stream_options": options}
    *chunks, _ = events(served.http.post("/v1/chat/completions", json=body))
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


def by_prompt(served: Served) -> None:
    """Make the engine answer with the prompt and the seed."""
    served.engine.script = lambda prompt, params: say(f"{bytes(prompt[1:]).decode()}#{params.seed}")


def test_several_answers(served: Served) -> None:
    served.engine.script = lambda prompt, params: say(f"seed {params.seed}")
    answer = served.openai.chat.completions.create(model="m", messages=USER, n=3, seed=2**32 - 1)
    assert [(c.index, c.message.content) for c in answer.choices] == [(0, "seed 4294967295"), (1, "seed 0"), (2, "seed 1")]
    assert answer.usage and answer.usage.completion_tokens == len("seed 4294967295seed 0seed 1")
    assert answer.usage.prompt_tokens == len(served.engine.submitted[0][0]) - 2


def test_several_answers_streamed(served: Served) -> None:
    served.engine.script = lambda prompt, params: say(f"seed {params.seed}")
    texts, roles, ends = ["", ""], [0, 0], [0, 0]
    stream = served.openai.chat.completions.create(
        model="m", messages=USER, n=2, seed=5, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role == "assistant"
            ends[choice.index] += choice.finish_reason == "stop"
    assert (texts, roles, ends) == (["seed 5", "seed 6"], [1, 1], [1, 1])
    assert chunk.usage and chunk.usage.completion_tokens == 12


def test_without_a_seed_each_answer_draws_one(served: Served) -> None:
    served.openai.chat.completions.create(model="m", messages=USER, n=2)
    assert [params.seed for _, params in served.engine.submitted] == [None, None]


LIMITS: dict[str, tuple[dict[str, Any], int | None]] = {
    "none": ({}, None),
    "max_tokens": ({"max_tokens": 3}, 3),
    "max_completion_tokens": ({"max_completion_tokens": 4}, 4),
    "both": ({"max_completion_tokens": 4, "max_tokens": 3}, 4),
    "null": ({"max_completion_tokens": None, "max_tokens": 3}, 3),
    "-1": ({"max_tokens": -1}, None),
    "-1 and another": ({"max_completion_tokens": -1, "max_tokens": 3}, None),
}


@pytest.mark.parametrize(("fields", "expected"), LIMITS.values(), ids=LIMITS)
def test_limits(served: Served, fields: dict[str, Any], expected: int | None) -> None:
    assert served.http.post("/v1/chat/completions", json={"messages": USER, **fields}).status_code == 200
    assert served.engine.submitted[0][1].max_tokens == expected


@pytest.mark.parametrize("stream", [False, True])
def test_probe_of_no_tokens(served: Served, stream: bool) -> None:
    response = served.http.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 0, "stream": stream})
    choice = events(response)[1]["choices"][0] if stream else response.json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert stream or choice["message"]["content"] == ""
    assert served.engine.submitted == []


def test_a_probe_is_checked_as_any_request(served: Served) -> None:
    response = served.http.post("/v1/completions", json={"prompt": [-1], "max_tokens": 0})
    assert response.status_code == 400 and response.json()["error"]["param"] == "prompt"


def test_completion(served: Served) -> None:
    by_prompt(served)
    answer = served.openai.completions.create(model="any/thing", prompt="hi", seed=1)
    assert (answer.object, answer.model, answer.choices[0].text) == ("text_completion", "any/thing", "hi#1")
    assert answer.choices[0].finish_reason == "stop" and answer.usage and answer.usage.prompt_tokens == 3
    assert served.engine.submitted[0][1].max_tokens == 512


def test_completion_streamed(served: Served) -> None:
    stream = served.openai.completions.create(model="m", prompt="hi", stream=True, stream_options={"include_usage": True})
    *chunks, finish, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT and finish.choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage and last.usage.completion_tokens == LENGTH


PROMPTS: dict[str, tuple[Any, list[str]]] = {
    "text": ("hi", ["hi"]),
    "texts": (["a", "b"], ["a", "b"]),
    "tokens": ([256, 104, 105], ["hi"]),
    "lists of tokens": ([[256, 97], [256, 98]], ["a", "b"]),
    "a text among tokens": ([256, "hi", 33], ["hi!"]),
    "a text before tokens": (["h", 105], ["hi"]),
    "all kinds": (["a", [256, 98], [256, "c", 100], {"prompt_string": "e"}], ["a", "b", "cd", "e"]),
    "wrapped": ({"prompt_string": [256, "hi"]}, ["hi"]),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("prompt", "texts"), PROMPTS.values(), ids=PROMPTS)
def test_prompts(served: Served, prompt: Any, texts: list[str], stream: bool) -> None:
    by_prompt(served)
    answers = [""] * len(texts) * 2
    options = {"include_usage": True} if stream else None
    body = {"prompt": prompt, "n": 2, "seed": 0, "stream": stream, "stream_options": options}
    response = served.http.post("/v1/completions", json=body)
    parts = events(response)[:-1] if stream else [response.json()]
    for part in parts:
        for choice in part["choices"]:
            answers[choice["index"]] += choice["text"]
    assert answers == [f"{text}#{seed}" for text in texts for seed in (0, 1)]
    assert parts[-1]["usage"]["prompt_tokens"] == sum(len(text) + 1 for text in texts)
    assert parts[-1]["usage"]["completion_tokens"] == sum(map(len, answers))


@pytest.mark.parametrize(
    "wrong",
    [
        *(None, [], "", [""], {}, 1, [1, "a", None], [[]], [[1], []], [1.5], [True], [["a"]], [None]),
        *({"prompt_string": 1}, {"prompt_string": "a", "multimodal_data": ["eA=="]}),
    ],
)
def test_wrong_prompts(served: Served, wrong: Any) -> None:
    response = served.http.post("/v1/completions", json={"prompt": wrong})
    if wrong in ("", [""]):  # the opening token alone is a prompt
        assert response.status_code == 200
    else:
        assert response.status_code == 400 and response.json()["error"]["param"] == "prompt"


def test_prompts_are_not_taken_apart() -> None:
    assert prompts("ab") == ["ab"] and prompts(["ab"]) == ["ab"] and prompts([[1]]) == [[1]] and prompts([1]) == [[1]]


@pytest.mark.parametrize("stream", [False, True])
def test_echo(served: Served, stream: bool) -> None:
    served.script(b"!", b"?")
    response = served.http.post("/v1/completions", json={"prompt": ["a", "b"], "echo": True, "n": 2, "stream": stream})
    texts = [""] * 4
    for part in events(response)[:-1] if stream else [response.json()]:
        for choice in part["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["a!?", "a!?", "b!?", "b!?"]


@pytest.mark.parametrize("prompt", [[256, 104, 105], [256, "hi"]])
def test_echo_of_tokens(served: Served, prompt: Any) -> None:
    response = served.http.post("/v1/completions", json={"prompt": prompt, "echo": True})
    assert response.json()["choices"][0]["text"] == f"<s>hi{TEXT}"


CHAT_UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "too many logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "top_logprobs": ({"top_logprobs": 2}, "top_logprobs"),
    "no schema": ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    "unknown format": ({"response_format": {"type": "yaml"}}, "response_format.type"),
    "two constraints": ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex"),
    "no choices": ({"choice": []}, "choice"),
    "tool without name": ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools[0].name"),
    "tools of one name": ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools[1].function.name"),
    "unknown tool": (
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        "tool_choice",
    ),
    "unknown choice": ({"tool_choice": "perhaps"}, "tool_choice"),
    "tool_choice without tools": ({"tool_choice": "required"}, "tool_choice"),
    "functions": ({"functions": [{"name": "f"}]}, "functions"),
    "function_call": ({"function_call": {"name": "f"}}, "function_call"),
    "audio": ({"modalities": ["text", "audio"]}, "modalities"),
}


@pytest.mark.parametrize(("fields", "param"), CHAT_UNSUPPORTED.values(), ids=CHAT_UNSUPPORTED)
def test_chat_refuses_what_it_cannot_heed(served: Served, fields: dict[str, Any], param: str) -> None:
    response = served.http.post("/v1/chat/completions", json={"messages": USER, **fields})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param, error


COMPLETION_UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "too many logprobs": ({"logprobs": 21}, "logprobs"),
    "a model that cannot fill in": ({"suffix": "x"}, "suffix"),
    "less than n": ({"best_of": 2, "n": 3}, "best_of"),
    "the best of a stream": ({"best_of": 2, "stream": True}, "best_of"),
    "echo of what surrounds a gap": ({"suffix": "x", "echo": True}, "echo"),
}


@pytest.mark.parametrize(("fields", "param"), COMPLETION_UNSUPPORTED.values(), ids=COMPLETION_UNSUPPORTED)
def test_completions_refuse_what_they_cannot_heed(served: Served, fields: dict[str, Any], param: str) -> None:
    response = served.http.post("/v1/completions", json={"prompt": "hi", **fields})
    assert response.status_code == 400 and response.json()["error"]["param"] == param


CHAT_IGNORED: dict[str, dict[str, Any]] = {
    "accepted, without meaning here": {
        "user": "u",
        "service_tier": "auto",
        "metadata": {"a": "b"},
        "store": True,
        "prompt_cache_key": "k",
        "verbosity": "low",
        "safety_identifier": "s",
        "parallel_tool_calls": True,
        "reasoning_effort": "minimal",
    },
    "null everywhere": dict.fromkeys(set(ChatBody.__struct_fields__) - {"messages"}),
    "text format": {"response_format": {"type": "text"}},
    "no tools": {"tools": [], "tool_choice": "auto", "functions": []},
    "tools that must not be called": {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    "a tool of the service's own": {"tools": [{"type": "web_search"}]},
    "no logprobs": {"logprobs": False, "top_logprobs": 0},
    "text modality": {"modalities": ["text"]},
    "extras": {"top_k": 3, "min_p": 0.1, "typical_p": 0.9, "repeat_penalty": 1.1, "ignore_eos": False, "penalty_window": 3},
}


@pytest.mark.parametrize("fields", CHAT_IGNORED.values(), ids=CHAT_IGNORED)
def test_chat_tolerates(served: Served, fields: dict[str, Any]) -> None:
    response = served.http.post("/v1/chat/completions", json={"messages": USER, **fields})
    assert response.status_code == 200, response.text


def test_completions_tolerate(served: Served) -> None:
    fields = {"suffix": "", "best_of": 1, "logprobs": None, "echo": None, "n": None, "user": "u", "stop": None}
    assert served.http.post("/v1/completions", json={"prompt": "hi", **fields}).status_code == 200


def test_models(served: Served) -> None:
    """The loaded one comes first, then those that a request would load."""
    models = served.openai.models.list()
    assert [(model.id, model.owned_by) for model in models] == [
        ("tiny:1b", "locallab"),
        ("other:2b", "locallab"),
        ("broken:3b", "locallab"),
    ]
    body = served.http.get("/v1/models").json()
    assert body["models"] == body["data"]
    entry, other, _ = body["data"]
    assert entry["meta"]["n_ctx"] == entry["context_length"] == entry["max_model_len"] == 512 and entry["created"] > 0
    assert (entry["status"], other["status"]) == ("ready", "unloaded")
    assert "meta" not in other and other["context_length"] == other["max_model_len"] == 512 and other["created"] > 0
    for name in ("tiny:1b", "other:2b"):
        assert served.openai.models.retrieve(name).id == name


def test_models_are_in_the_order_of_use(serve: Serve) -> None:
    with serve(on_demand="keep") as served:
        served.http.post("/v1/completions", json={"prompt": "hi", "model": "other:2b"})
        (served.pool.store.root.parent / "broken-3b.gguf").unlink()
        assert [model.id for model in served.openai.models.list()] == ["other:2b", "tiny:1b"]
        with pytest.raises(openai.NotFoundError, match="'broken:3b' is not loaded"):
            served.openai.models.retrieve("broken:3b")


def test_models_before_one_is_loaded(serve: Serve) -> None:
    with serve(load=None, on_demand="refuse") as served:
        assert served.http.get("/v1/models").json() == {"object": "list", "data": [], "models": []}
        response = served.http.post("/v1/chat/completions", json={"messages": USER})
        assert response.status_code == 503 and response.headers["retry-after"] == "2"
        assert response.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("name", "message"),
    [("nobody/no-such-model", "unknown model 'nobody/no-such-model'"), ("other:2b", "model 'other:2b' is not loaded;")],
)
def test_model_that_is_not_there(serve: Serve, name: str, message: str) -> None:
    with serve(on_demand="refuse") as served:
        with pytest.raises(openai.NotFoundError) as caught:
            served.openai.models.retrieve(name)
        assert caught.value.code == "model_not_found" and caught.value.param == "model" and message in caught.value.message


def test_model_of_the_registry_that_is_not_loaded(serve: Serve) -> None:
    with serve(on_demand="refuse") as served, pytest.raises(openai.NotFoundError, match="POST /models/load"):
        served.openai.chat.completions.create(model="other:2b", messages=USER)


def test_model_that_is_asked_is_loaded(serve: Serve) -> None:
    with serve() as served:
        for name in ("other:2b", "OTHER:2B", "gpt-4o", "first"):
            answer = served.openai.chat.completions.create(model=name, messages=USER)
            assert answer.model == name and answer.choices[0].message.content == TEXT
            assert served.pool.current and served.pool.current.spec.id == ("tiny:1b" if name == "first" else "other:2b")


def test_unknown_model_where_names_are_strict(serve: Serve) -> None:
    with serve(strict_models=True) as served:
        with pytest.raises(openai.NotFoundError, match="unknown model 'tiny'; did you mean tiny:1b"):
            served.openai.chat.completions.create(model="tiny", messages=USER)
        assert served.openai.chat.completions.create(model="first", messages=USER).model == "first"


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_context_length_exceeded(served: Served, path: str) -> None:
    long = "x" * 600
    content = {"messages": [{"role": "user", "content": long}]} if path.startswith("chat") else {"prompt": long}
    response = served.http.post(f"/v1/{path}", json={**content, "stream": True})
    error = response.json()["error"]
    tokens = 651 if path.startswith("chat") else 601
    assert response.status_code == 400
    assert error == {
        "message": (
            f"This model's maximum context length is 512 tokens. However, your request has {tokens} tokens"
            " (context window exceeded). Please reduce the length of the messages."
        ),
        "type": "invalid_request_error",
        "param": "messages" if path.startswith("chat") else "prompt",
        "code": "context_length_exceeded",
        "n_prompt_tokens": tokens,
        "n_ctx": 512,
    }


IDS = list(TEXT.encode())


def test_token_ids_of_a_chat(served: Served) -> None:
    body = {"messages": USER, "return_token_ids": True}
    answer = served.http.post("/v1/chat/completions", json=body).json()
    [(prompt, _)] = served.engine.submitted
    assert bytes(answer["prompt_token_ids"][1:]).decode() == prompt.removeprefix("<s>")
    assert answer["choices"][0]["token_ids"] == IDS
    for more in ({}, {"logprobs": True}):
        first, *chunks, _ = events(served.http.post("/v1/chat/completions", json={**body, **more, "stream": True}))
        assert first["prompt_token_ids"] == answer["prompt_token_ids"]
        assert not any("prompt_token_ids" in chunk for chunk in chunks)
        assert [id for chunk in chunks for id in chunk["choices"][0].get("token_ids", [])] == IDS
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == TEXT


def test_token_ids_of_completions(served: Served) -> None:
    body = {"prompt": ["a", "bc"], "return_token_ids": True, "n": 2}
    choices = served.http.post("/v1/completions", json=body).json()["choices"]
    prompts = [[256, 97], [256, 97], [256, 98, 99], [256, 98, 99]]
    assert [choice["prompt_token_ids"] for choice in choices] == prompts and all(
        choice["token_ids"] == IDS for choice in choices
    )
    for more in ({}, {"echo": True}, {"logprobs": 1}, {"logprobs": 1, "echo": True}):
        *chunks, _ = events(served.http.post("/v1/completions", json={**body, **more, "stream": True}))
        for index, prompt in enumerate(prompts):
            mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
            assert [choice["prompt_token_ids"] for choice in mine if "prompt_token_ids" in choice] == [prompt]
            assert [id for choice in mine for id in choice.get("token_ids", [])] == IDS
            assert "".join(choice["text"] for choice in mine).endswith(TEXT)


def test_no_token_ids_unless_asked_for(served: Served) -> None:
    for path, body in (("/v1/chat/completions", {"messages": USER}), ("/v1/completions", {"prompt": "hi"})):
        assert served.http.post(path, json=body).json()["choices"][0]["token_ids"] is None
        assert "token_ids" not in served.http.post(path, json={**body, "stream": True}).text
