"""Tolerance and guarantees of every dialect: a section per point of a checklist drawn from the requests of real clients."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import msgspec
import pytest

from locallab.engine.request import SamplingParams
from locallab.replay import message
from locallab.replay.checks import service
from locallab.replay.checks.anthropic import message_stream
from locallab.replay.checks.ollama import ollama_stream
from locallab.replay.checks.openai import stream
from locallab.replay.checks.responses import response_stream
from locallab.replay.exchange import Reply
from locallab.server.dialects.anthropic.request import MessagesBody
from locallab.server.dialects.native.generate import GenerateBody, NativeChatBody
from locallab.server.dialects.ollama.request import OllamaChatBody, OllamaGenerateBody, Options
from locallab.server.dialects.openai.chat import ChatBody
from locallab.server.dialects.openai.completions import CompletionBody
from locallab.server.dialects.responses.request import ResponsesBody
from tests.support import dialect_requests
from tests.support.dialect_requests import TEMPLATE
from tests.support.fake_engine import TEXT, Step, say
from tests.support.http_server import Served, start_in

CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
OLLAMA_CHAT, OLLAMA_GENERATE = "/api/chat", "/api/generate"
USER: Any = [{"role": "user", "content": "hi"}]

LEAST: Mapping[str, tuple[type[msgspec.Struct], dict[str, Any]]] = {
    CHAT: (ChatBody, {"messages": USER}),
    COMPLETIONS: (CompletionBody, {"prompt": "hi"}),
    MESSAGES: (MessagesBody, {"messages": USER, "max_tokens": 99}),
    RESPONSES: (ResponsesBody, {"input": "hi"}),
    OLLAMA_CHAT: (OllamaChatBody, {"messages": USER}),
    OLLAMA_GENERATE: (OllamaGenerateBody, {"prompt": "hi"}),
    "/generate": (GenerateBody, {"prompt": "hi"}),
    "/chat": (NativeChatBody, {"messages": USER}),
}
"""The routes on which a model answers: the type of their body, and the smallest valid one."""

CHATS = [path for path, (_, least) in LEAST.items() if "messages" in least]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with start_in(tmp_path_factory.mktemp("tolerance"))(engine={"context": 4096, "template": TEMPLATE}) as served:
        yield served


@pytest.fixture
def served(server: Served) -> Served:
    server.engine.reset()
    return server


def post(served: Served, path: str, **more: Any) -> httpx.Response:
    return served.http.post(path, json={**LEAST[path][1], "stream": False, **more})


def asked(served: Served, path: str, **more: Any) -> tuple[str, SamplingParams]:
    """Return the prompt and the parameters that a request results in."""
    reply = post(served, path, **more)
    assert reply.status_code == 200, reply.text
    return served.engine.submitted[-1]


# 1. null is not set, and unknown fields are ignored.


@pytest.mark.parametrize("path", LEAST)
def test_null_is_not_set(served: Served, path: str) -> None:
    kind, least = LEAST[path]
    fields = [field.encode_name for field in msgspec.structs.fields(kind)]
    optional = [name for name in fields if name not in least and name != "stream"]
    assert len(optional) > 5
    plain = asked(served, path)
    assert asked(served, path, **dict.fromkeys(optional)) == plain


def test_null_is_not_set_among_ollamas_options(served: Served) -> None:
    options = dict.fromkeys(field.encode_name for field in msgspec.structs.fields(Options))
    assert asked(served, OLLAMA_CHAT, options=options) == asked(served, OLLAMA_CHAT)


@pytest.mark.parametrize("path", LEAST)
def test_unknown_fields_are_ignored(served: Served, path: str) -> None:
    plain = asked(served, path)
    assert asked(served, path, unheard_of={"a": [1]}, extra_body={"b": 2}, num_gpu=99, cache_control=None) == plain


# 2. Content in every form.

CONTENTS: dict[str, tuple[Any, str]] = {
    "string": ("hello", "hello"),
    "null": (None, ""),
    "empty": ("", ""),
    "empty list": ([], ""),
    "parts": ([{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}], "hel\nlo"),
    "cache_control": ([{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}], "hello"),
    "strings": (["hel", "lo"], "hel\nlo"),
    "other types of text": (
        [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}, {"type": "refusal", "refusal": "c"}],
        "a\nb\nc",
    ),
    "null text": ([{"type": "text", "text": None}], ""),
}


@pytest.mark.parametrize(("content", "text"), CONTENTS.values(), ids=CONTENTS)
def test_content(served: Served, content: Any, text: str) -> None:
    messages = [{"role": "user", "content": content}]
    assert f"<user>{text}\n" in asked(served, CHAT, messages=messages)[0]
    if not isinstance(content, list) or content[:1] != ["hel"]:  # which the service's own API does not take
        assert f"<user>{text}\n" in asked(served, RESPONSES, input=messages)[0]


def test_content_may_be_missing(served: Served) -> None:
    assert "<user>\n" in asked(served, CHAT, messages=[{"role": "user"}])[0]


@pytest.mark.parametrize("path", [CHAT, "/chat"])
def test_images_are_refused_by_name(served: Served, path: str) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    reply = post(served, path, messages=[{"role": "user", "content": [{"type": "text", "text": "see"}, part]}])
    assert reply.status_code == 400 and "messages[0].content: this model takes no images" in reply.text


def test_content_of_anthropics_messages(served: Served) -> None:
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "user", "content": [{"type": "text", "text": "hello", "cache_control": None}]}]
    prompt, _ = asked(served, MESSAGES, system=system, messages=messages)
    assert "<system>Be brief.\n<user>hello\n" in prompt


# 3. Every role, in any position.


@pytest.mark.parametrize("path", [CHAT, "/chat", OLLAMA_CHAT])
def test_roles(served: Served, path: str) -> None:
    roles = ["assistant", "developer", "user", "system", "user", "assistant", "tool", "function", "system"]
    messages = [{"role": role, "content": f"said by {role} {index}"} for index, role in enumerate(roles)]
    prompt, _ = asked(served, path, messages=messages)
    assert all(message["content"] in prompt for message in messages)
    assert post(served, path, messages=[{"role": "wizard", "content": ""}]).status_code == 400


# 4. Limits: probes of no tokens, no limit, and no small default.

LIMITS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "chat: none": (CHAT, {}, None),
    "chat: -1": (CHAT, {"max_tokens": -1}, None),
    "chat: the newer one counts": (CHAT, {"max_tokens": 3, "max_completion_tokens": 5}, 5),
    "chat: 1": (CHAT, {"max_completion_tokens": 1}, 1),
    "responses: none": (RESPONSES, {}, None),
    "responses: 16": (RESPONSES, {"max_output_tokens": 16}, 16),
    "ollama: none": (OLLAMA_CHAT, {}, None),
    "ollama: -1": (OLLAMA_CHAT, {"options": {"num_predict": -1}}, None),
    "ollama: -2": (OLLAMA_CHAT, {"options": {"num_predict": -2}}, None),
    "native: none": ("/chat", {}, None),
    "messages": (MESSAGES, {"max_tokens": 7}, 7),
    "completions: the setting's": (COMPLETIONS, {}, 512),
}


@pytest.mark.parametrize(("path", "fields", "limit"), LIMITS.values(), ids=LIMITS)
def test_limits(served: Served, path: str, fields: dict[str, Any], limit: int | None) -> None:
    assert asked(served, path, **fields)[1].max_tokens == limit


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, "/chat"])
def test_probe_of_no_tokens(served: Served, path: str) -> None:
    assert post(served, path, max_tokens=0).status_code == 200


# 5. stop in every form, and fields with a meaning for OpenAI's service only.

STOPS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "null": (None, ()),
    "string": ("a", ("a",)),
    "empty": ("", ()),
    "list": (["a", "b"], ("a", "b")),
    "empty list": ([], ()),
    "more than four": (list("abcdef"), tuple("abcdef")),
}
PATHS_WITH_STOP = [CHAT, COMPLETIONS, "/chat", "/generate"]


@pytest.mark.parametrize("path", PATHS_WITH_STOP)
@pytest.mark.parametrize(("stop", "texts"), STOPS.values(), ids=STOPS)
def test_stop(served: Served, path: str, stop: Any, texts: tuple[str, ...]) -> None:
    assert asked(served, path, stop=stop)[1].stop == texts


INDIFFERENT: Mapping[str, Any] = {
    "user": "ada",
    "service_tier": "auto",
    "metadata": {"a": "b"},
    "store": True,
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "verbosity": "low",
    "safety_identifier": "s",
    "web_search_options": None,
}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_indifferent_fields(served: Served, path: str) -> None:
    assert asked(served, path, **INDIFFERENT) == asked(served, path)


# 6. and 7. tool_choice in the forms of three dialects, and odd tools.

FUNCTIONS = [
    {"type": "function", "function": {"name": "weather", "description": None, "strict": None}},
    {"type": "function", "function": {"name": "time", "parameters": None, "strict": True}},
    {"type": "web_search_preview"},
    {"type": "custom", "custom": {"name": "patch"}},
]
FLAT = [{"type": "function", "name": "weather", "strict": False}, {"type": "function", "name": "time", "parameters": {}}]
INPUTS = [{"name": "weather", "description": None}, {"name": "time", "input_schema": {"type": "object"}, "cache_control": {}}]
NAMED = {"type": "function", "function": {"name": "time"}}
PARALLEL = "{0,"
"""A part of the grammar of several calls that the grammar of one call lacks."""

CHOICES: dict[str, tuple[str, dict[str, Any], tuple[str, ...], bool]] = {
    "none given": (CHAT, {"tools": FUNCTIONS}, ("weather", "time"), True),
    "auto": (CHAT, {"tools": FUNCTIONS, "tool_choice": "auto"}, ("weather", "time"), True),
    "required": (CHAT, {"tools": FUNCTIONS, "tool_choice": "required"}, ("weather", "time"), True),
    "any": (CHAT, {"tools": FUNCTIONS, "tool_choice": "any"}, ("weather", "time"), True),
    "named": (CHAT, {"tools": FUNCTIONS, "tool_choice": NAMED}, ("time",), False),
    "one at most": (CHAT, {"tools": FUNCTIONS, "parallel_tool_calls": False}, ("weather", "time"), False),
    "one exactly": (CHAT, {"tools": FUNCTIONS, "tool_choice": "required", "parallel_tool_calls": False}, ("weather",), False),
    "none": (CHAT, {"tools": FUNCTIONS, "tool_choice": "none"}, (), False),
    "no tools": (CHAT, {"tools": [], "tool_choice": "auto"}, (), False),
    "responses: required": (RESPONSES, {"tools": FLAT, "tool_choice": "required"}, ("weather", "time"), True),
    "responses: named": (RESPONSES, {"tools": FLAT, "tool_choice": {"type": "function", "name": "time"}}, ("time",), False),
    "responses: some": (
        RESPONSES,
        {"tools": FLAT, "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [FLAT[1]]}},
        ("time",),
        True,
    ),
    "messages: any": (MESSAGES, {"tools": INPUTS, "tool_choice": {"type": "any"}}, ("weather", "time"), True),
    "messages: named": (MESSAGES, {"tools": INPUTS, "tool_choice": {"type": "tool", "name": "time"}}, ("time",), False),
    "messages: one at most": (
        MESSAGES,
        {"tools": INPUTS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ("weather", "time"),
        False,
    ),
    "messages: none": (MESSAGES, {"tools": INPUTS, "tool_choice": {"type": "none"}}, (), False),
    "ollama": (OLLAMA_CHAT, {"tools": FUNCTIONS[:2]}, ("weather", "time"), True),
}


@pytest.mark.parametrize(("path", "fields", "names", "several"), CHOICES.values(), ids=CHOICES)
def test_tool_choice(served: Served, path: str, fields: dict[str, Any], names: tuple[str, ...], several: bool) -> None:
    prompt, params = asked(served, path, **fields)
    if not names:
        assert params.constraint is None and "<can>" not in prompt
        return
    assert params.constraint is not None
    assert all(name in params.constraint.source for name in names)
    assert names != ("time",) or "weather" not in params.constraint.source
    assert (PARALLEL in params.constraint.source) == several


@pytest.mark.parametrize("choice", ["perhaps", {"type": "function", "function": {"name": "spy"}}, 1])
def test_a_choice_that_cannot_be_met_is_refused(served: Served, choice: Any) -> None:
    reply = post(served, CHAT, tools=FUNCTIONS, tool_choice=choice)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tool_choice")


# 8. History as agents send it.


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "weather", "arguments": arguments}}


HISTORIES: dict[str, tuple[list[Any], str]] = {
    "arguments": ([{"role": "assistant", "content": None, "tool_calls": [call('{"a": 1}')]}], '[weather {"a": 1} c]'),
    "an object": ([{"role": "assistant", "tool_calls": [call({"a": 1})]}], '[weather {"a": 1} c]'),
    "invalid JSON": ([{"role": "assistant", "content": "", "tool_calls": [call('{"a"')]}], '{"raw":'),
    "no arguments": ([{"role": "assistant", "content": " ", "tool_calls": [call(None)]}], "[weather {} c]"),
    "no calls": ([{"role": "assistant", "content": "well", "tool_calls": []}], "<assistant>well\n"),
    "null calls": ([{"role": "assistant", "content": "well", "tool_calls": None}], "<assistant>well\n"),
    "an orphan": ([{"role": "tool", "tool_call_id": "gone", "content": "rain"}], "rain"),
    "the older form": ([{"role": "assistant", "function_call": {"name": "weather", "arguments": "{}"}}], "[weather {} ]"),
    "the result of nothing": ([{"role": "tool", "content": None}], "<user>"),
}


@pytest.mark.parametrize(("more", "expected"), HISTORIES.values(), ids=HISTORIES)
def test_history(served: Served, more: list[Any], expected: str) -> None:
    prompt, _ = asked(served, CHAT, messages=[*USER, *more, *USER], tools=FUNCTIONS)
    assert expected in prompt


# 9. Reasoning, requested in every way.

WISHES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"reasoning_effort": "none"}, "<think></think>"),
    "minimal": ({"reasoning_effort": "minimal"}, "<effort>low"),
    "low": ({"reasoning_effort": "low"}, "<effort>low"),
    "high": ({"reasoning_effort": "high"}, "<effort>high"),
    "xhigh": ({"reasoning_effort": "xhigh"}, "<effort>high"),
    "any word": ({"reasoning_effort": "ludicrous"}, "<effort>ludicrous"),
    "an object": ({"reasoning": {"effort": "low", "exclude": True}}, "<effort>low"),
    "off": ({"enable_thinking": False}, "<think></think>"),
    "off for the template": ({"chat_template_kwargs": {"enable_thinking": False}}, "<think></think>"),
    "disabled": ({"thinking": {"type": "disabled"}}, "<think></think>"),
    "false": ({"thinking": False}, "<think></think>"),
    "enabled": ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "<assistant>"),
}


@pytest.mark.parametrize(("wish", "expected"), WISHES.values(), ids=WISHES)
def test_reasoning(served: Served, wish: dict[str, Any], expected: str) -> None:
    prompt, params = asked(served, CHAT, **wish)
    assert expected in prompt
    assert (params.reasoning is not None) == ("budget_tokens" in str(wish))


# 10. and 11. Streams.

SAYS = dialect_requests.RAW
PLACE = {"type": "function", "function": {"name": "weather", "parameters": dialect_requests.PARAMETERS}}
PLACE_INPUT = {"name": "weather", "input_schema": dialect_requests.PARAMETERS}


def streamed(served: Served, path: str, **more: Any) -> Reply:
    reply = post(served, path, stream=True, **more)
    return Reply(reply.status_code, dict(reply.headers), reply.text)


def as_scripted(seen: message.WholeMessage) -> None:
    assert (seen.content.strip(), seen.reasoning.strip()) == (dialect_requests.SAID, dialect_requests.THOUGHT)
    assert [json.loads(each.arguments) for each in seen.calls] == [dialect_requests.ARGUMENTS] * 2
    assert seen.finish_reason == "tool_calls"


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_streams(served: Served, size: int) -> None:
    """Run the checks of the replay: role first, name and id once, the finish reason, the usage only if requested."""
    served.script(*say(SAYS, size))
    stream(as_scripted)(streamed(served, CHAT, tools=[PLACE]))
    stream(as_scripted, usage=True)(streamed(served, CHAT, tools=[PLACE], stream_options={"include_usage": True}))
    thinking = {"type": "enabled", "budget_tokens": 99}
    message_stream(as_scripted)(streamed(served, MESSAGES, tools=[PLACE_INPUT], thinking=thinking, max_tokens=4000))
    response_stream(message.known_calls("weather"))(streamed(served, RESPONSES, tools=[PLACE_INPUT]))
    ollama_stream(message.known_calls("weather"))(streamed(served, OLLAMA_CHAT, tools=[PLACE]))


def test_reasoning_has_one_name(served: Served) -> None:
    """Clients that know two names would show it twice."""
    served.script(SAYS.encode())
    message = post(served, CHAT).json()["choices"][0]["message"]
    assert message["reasoning_content"].strip() == dialect_requests.THOUGHT and "reasoning" not in message
    assert '"reasoning"' not in streamed(served, CHAT).text


FAILURES: dict[str, str] = {
    CHAT: 'data: {"error":{"message":',
    COMPLETIONS: 'data: {"error":{"message":',
    MESSAGES: 'event: error\ndata: {"type":"error","error":{"type":"api_error"',
    RESPONSES: "event: response.failed\n",
    OLLAMA_CHAT: '{"error":"',
    "/generate": 'data: {"detail":',
}


@pytest.mark.parametrize(("path", "expected"), FAILURES.items(), ids=FAILURES)
def test_errors_in_the_middle_of_a_stream(served: Served, path: str, expected: str) -> None:
    steps: list[Step] = [b"Hel", RuntimeError("the engine broke")]
    served.script(*steps)
    answer = streamed(served, path)
    assert answer.status == 200 and expected in answer.text.split("Hel")[1]
    assert "the engine broke" not in answer.text


# 12. Probes before the first request.


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/v1/models", "/models", "/v1/models/tiny:1b", "/models/tiny:1b", "/api/hello"])
def test_greetings(served: Served, method: str, path: str) -> None:
    reply = served.http.request(method, path)
    assert reply.status_code == 200 and bool(reply.content) == (method == "GET")


def test_models(served: Served) -> None:
    for path in ("/v1/models", "/models", "/v1/models?client_version=0.1", "/v1/models/"):
        reply = served.http.get(path)
        service.context_reported(Reply(reply.status_code, dict(reply.headers), reply.text))
        assert reply.json()["data"][0]["context_length"] == 4096


@pytest.mark.parametrize("path", ["/v1/models/no/such/model", "/models/no/such/model", "/v1/models/no%2Fsuch%2Fmodel"])
def test_ids_with_slashes(served: Served, path: str) -> None:
    reply = served.http.get(path)
    assert reply.status_code == 404
    assert "no/such/model" in reply.json()["error"]["message"] and reply.json()["error"]["code"] == "model_not_found"


# 13. One path in every spelling.

SPELLINGS = {
    CHAT: [CHAT, "/chat/completions", "//v1/chat/completions", "/v1//chat/completions", "/v1/chat/completions/"],
    COMPLETIONS: [COMPLETIONS, "/completions", "/completions/"],
    MESSAGES: [MESSAGES, "/v1/messages?beta=true", "/v1/messages/?beta=true", "/messages?beta=true"],
    RESPONSES: [RESPONSES, "/responses", "/v1/responses/"],
    OLLAMA_CHAT: [OLLAMA_CHAT, "//api/chat", "/api/chat/"],
}


@pytest.mark.parametrize(("route", "path"), [(route, path) for route, paths in SPELLINGS.items() for path in paths])
def test_spellings(served: Served, route: str, path: str) -> None:
    reply = served.http.post(path, json={**LEAST[route][1], "stream": False})
    assert reply.status_code == 200 and TEXT in reply.text


# 14. and 15. Preflights and keys.

KEY = "ll-for-the-tests"
DIALECT_OF = {CHAT: "openai", RESPONSES: "openai", MESSAGES: "anthropic", OLLAMA_CHAT: "ollama", "/chat": "native"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with start_in(tmp_path_factory.mktemp("guarded"))(api_key=KEY) as served:
        yield served


@pytest.mark.parametrize("path", DIALECT_OF)
def test_preflight_needs_no_key(guarded: Served, path: str) -> None:
    names = "authorization, x-api-key, x-stainless-os, anthropic-version, ngrok-skip-browser-warning, x-anything"
    asks = {"access-control-request-method": "POST", "access-control-request-headers": names}
    reply = guarded.http.options(path, headers={"origin": "https://app.example.com", **asks})
    service.granted(names.replace(" ", "").split(","))(Reply(reply.status_code, dict(reply.headers), reply.text))
    assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize("path", DIALECT_OF)
@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"x-api-key": KEY},
        {"api-key": KEY},
        {"authorization": f"Bearer {KEY}", "api-key": ""},
    ],
    ids=["bearer", "x-api-key", "api-key", "two, one empty"],
)
def test_keys(guarded: Served, path: str, headers: dict[str, str]) -> None:
    assert guarded.http.post(path, json={**LEAST[path][1], "stream": False}, headers=headers).status_code == 200


@pytest.mark.parametrize(("path", "dialect"), DIALECT_OF.items())
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer"}, {"x-api-key": "wrong"}], ids=["none", "empty", "wrong"])
def test_no_key(guarded: Served, path: str, dialect: str, headers: dict[str, str]) -> None:
    reply = guarded.http.post(path, json=LEAST[path][1], headers=headers)
    assert reply.status_code == 401 and "API key" in problem(reply, dialect)


def test_an_empty_key_will_do_where_none_is_asked_for(served: Served) -> None:
    for headers in ({"authorization": "Bearer"}, {"x-api-key": ""}, {"authorization": "Bearer any"}):
        assert served.http.post(CHAT, json=LEAST[CHAT][1], headers=headers).status_code == 200


# 16. Errors in the dialect's format.


def problem(reply: httpx.Response, dialect: str) -> str:
    """Return the message of an error, which must have the dialect's format."""
    body = reply.json()
    match dialect:
        case "native":
            assert body.keys() == {"detail"}
            message = body["detail"]
        case "openai":
            assert body.keys() == {"error"} and {"message", "type", "param", "code"} <= body["error"].keys()
            message = body["error"]["message"]
        case "anthropic":
            assert body["type"] == "error" and body["error"].keys() == {"type", "message"}
            message = body["error"]["message"]
        case _:
            assert body.keys() == {"error"}
            message = body["error"]
    assert isinstance(message, str)
    return message


@pytest.mark.parametrize(("path", "dialect"), DIALECT_OF.items())
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_errors_of_paths(served: Served, path: str, dialect: str, method: str) -> None:
    wrong = served.http.request(method, path)
    assert wrong.status_code == 405 and method in problem(wrong, dialect)
    assert served.http.post(f"{path}/no/such/thing").status_code == 404


# 17. Unknown model names.


@pytest.mark.parametrize("path", DIALECT_OF)
@pytest.mark.parametrize("name", ["gpt-4o", "claude-haiku-4-5-20251001", "openai/gpt-4o", "llama3:8b"])
def test_an_unknown_name_is_served_and_echoed(served: Served, path: str, name: str) -> None:
    field = "model_id" if path == "/chat" else "model"
    reply = post(served, path, **{field: name})
    if path == "/chat":  # whose documents say otherwise
        assert reply.status_code == 404
    else:
        assert reply.status_code == 200 and reply.json()["model"] == name


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES, OLLAMA_CHAT])
def test_an_unknown_name_where_names_count(tmp_path: Any, path: str) -> None:
    with start_in(tmp_path)(strict_models=True) as served:
        reply = post(served, path, model="gpt-4o")
        assert reply.status_code == 404 and "gpt-4o" in problem(reply, DIALECT_OF[path])


# 18. 400 for invalid requests: never 422 or 500, which clients retry.

WRONG: dict[str, Any] = {
    "no JSON": b"{",
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'{"model": "\xff", "model_id": "\xff"}',
    "nested": b"[" * 100_000,
    "temperature": {"temperature": "hot"},
    "messages": {"messages": "hi", "prompt": {}, "input": 1},
    "no messages": {"messages": [], "prompt": [], "input": {}},
    "a message": {"messages": [1], "prompt": [{}], "input": [1]},
    "stream": {"stream": "yes"},
    "model": {"model": 1, "model_id": 1},
}


FINE = [
    (OLLAMA_CHAT, WRONG["no messages"]),  # only loads the model
    (OLLAMA_CHAT, WRONG["temperature"]),  # which has its place among the options
    (OLLAMA_GENERATE, WRONG["temperature"]),
]


@pytest.mark.parametrize("path", LEAST)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_wrong(served: Served, path: str, wrong: Any) -> None:
    body = wrong if isinstance(wrong, bytes) else json.dumps({**LEAST[path][1], **wrong}).encode()
    reply = served.http.post(path, content=body)
    assert reply.status_code == (200 if (path, wrong) in FINE else 400), reply.text


# The prompt that is too long.

OVERFLOWS: dict[str, tuple[str, Any]] = {
    "chat": (CHAT, service.too_long),
    "completions": (COMPLETIONS, service.too_long),
    "messages": (MESSAGES, service.too_long_for_anthropic),
    "responses": (RESPONSES, service.too_long),
    "ollama": (OLLAMA_CHAT, service.ollama_refused(400)),
    "native": ("/chat", service.code(400)),
}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("path", "check"), OVERFLOWS.values(), ids=OVERFLOWS)
def test_overflow(served: Served, path: str, check: Any, streams: bool) -> None:
    text = "word " * 1000
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": text}],
        "prompt": text,
        "input": text,
    }
    body = {name: fields[name] for name in LEAST[path][1] if name in fields}
    reply = post(served, path, **body, stream=streams)
    answer = Reply(reply.status_code, dict(reply.headers), reply.text)
    (service.too_long_for_codex if path == RESPONSES and streams else check)(answer)
    assert "4096" in reply.text and served.engine.submitted == []
