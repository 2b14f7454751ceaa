"""Anthropic's dialect, with the real client and by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from hypothesis import given

from locallab.engine.request import Constraint
from locallab.errors import EngineFailure
from locallab.server.dialects.anthropic.stream import AnthropicFormatter
from tests.support.dialect_requests import ARGUMENTS, CALL, PARAMETERS, RAW, SAID, THOUGHT, cut, cuts, named_events, news, turn
from tests.support.fake_engine import TEXT, say
from tests.support.http_server import Serve, Served

USER: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [
    {"name": "weather", "description": "Of a place", "input_schema": PARAMETERS, "cache_control": {"type": "ephemeral"}}
]
THINK: Any = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture
def client(thinking: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=thinking.url, api_key="any", max_retries=0) as client:
        yield client


def post(served: Served, path: str = "/v1/messages", **body: Any) -> Any:
    return served.http.post(path, json={"model": "any", "max_tokens": 100, "messages": USER, **body})


def prompt(served: Served, **body: Any) -> str:
    """Return the prompt of the last request."""
    response = post(served, **body)
    assert response.status_code == 200, response.text
    return served.engine.submitted[-1][0]


def test_text(thinking: Served, client: anthropic.Anthropic) -> None:
    thinking.engine.cached = 4
    message = client.messages.create(model="claude-haiku", max_tokens=100, messages=USER)
    assert [(block.type, getattr(block, "text", "")) for block in message.content] == [("text", TEXT)]
    assert (message.model, message.role, message.stop_reason, message.stop_sequence) == (
        "claude-haiku",
        "assistant",
        "end_turn",
        None,
    )
    said, params = thinking.engine.submitted[-1]
    assert said == "<s><user>hi\n<assistant><think></think>" and params.temperature == 1.0 and params.max_tokens == 100
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (len(said.encode()) - 3 + 1 - 4, 4)
    assert usage.output_tokens == len(TEXT.encode())


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_stream_is_the_whole_message(thinking: Served, client: anthropic.Anthropic, size: int) -> None:
    thinking.script(*say(RAW, size))
    asked: Any = {"model": "m", "max_tokens": 1000, "messages": USER, "tools": TOOLS, "thinking": THINK}
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    whole = client.messages.create(**asked)
    for answer in (message, whole):
        thought, said, *calls = answer.content
        assert thought.type == "thinking" and thought.thinking == THOUGHT and thought.signature == ""
        assert said.type == "text" and said.text == SAID == text
        assert [(call.type, call.name, call.input) for call in calls] == [("tool_use", "weather", ARGUMENTS)] * 2
        assert answer.stop_reason == "tool_use" and len({call.id for call in calls}) == 2
    assert message.usage == whole.usage


def blocks(stream: str) -> tuple[list[Any], list[Any]]:
    """Return the blocks of a stream, each of which starts, grows and stops before the next one, and the other events."""
    found: list[Any] = []
    others = []
    is_open = False
    for event in named_events(stream):
        match event["type"]:
            case "content_block_start":
                assert not is_open and event["index"] == len(found)
                found.append({**event["content_block"], "grown": ""})
            case "content_block_delta":
                assert is_open and event["index"] == len(found) - 1
                found[-1]["grown"] += event["delta"].get(
                    event["delta"]["type"].removesuffix("_delta").replace("input_json", "partial_json"), ""
                )
            case "content_block_stop":
                assert is_open and event["index"] == len(found) - 1
            case _:
                others.append(event)
        is_open = {"content_block_start": True, "content_block_stop": False}.get(event["type"], is_open)
    assert not is_open
    return found, others


@given(cuts)
def test_however_the_text_is_cut_the_stream_says_the_same(places: list[int]) -> None:
    chunks = AnthropicFormatter(turn(), "m", prompt_tokens=5)
    body = b"".join(chunks.encode(items) for items in news(cut(RAW, places))) + chunks.end()
    found, others = blocks(body.decode())
    assert [(block["type"], block["grown"]) for block in found[:2]] == [("thinking", THOUGHT), ("text", SAID)]
    assert [(block["name"], json.loads(block["grown"])) for block in found[2:]] == [("weather", ARGUMENTS)] * 2
    assert [event["type"] for event in others] == ["message_start", "message_delta", "message_stop"]
    assert others[0]["message"]["usage"]["input_tokens"] == 5 and others[0]["message"]["stop_reason"] is None
    assert others[1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert (others[1]["usage"]["input_tokens"], others[1]["usage"]["cache_read_input_tokens"]) == (3, 2)


def test_an_answer_of_nothing_is_an_empty_text(thinking: Served) -> None:
    thinking.script(b"")
    assert post(thinking).json()["content"] == [{"type": "text", "text": ""}]
    found, _ = blocks(post(thinking, stream=True).text)
    assert [(block["type"], block["grown"]) for block in found] == [("text", "")]


def test_thinking_is_off_unless_asked_for(thinking: Served) -> None:
    assert prompt(thinking).endswith("<assistant><think></think>")
    assert prompt(thinking, thinking={"type": "disabled"}).endswith("<assistant><think></think>")
    assert prompt(thinking, thinking=THINK).endswith("<assistant>")
    budget = thinking.engine.submitted[-1][1].reasoning
    assert budget is not None and budget.tokens == 1024
    effort = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}
    assert "<effort>high\n<assistant>" in prompt(thinking, **effort)


def test_a_conversation_with_tools_goes_on(thinking: Served) -> None:
    thinking.script(*say(CALL))
    asked = post(thinking, tools=TOOLS).json()
    [call] = asked["content"]
    results = [
        {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "rain"}], "is_error": False},
        {"type": "text", "text": "so?"},
    ]
    said = prompt(
        thinking, tools=TOOLS, messages=[*USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": results}]
    )
    arguments = json.dumps(ARGUMENTS, ensure_ascii=False)
    assert f"<assistant>[weather {arguments} {call['id']}]\n<tool>rain[{call['id']}]\n<user>so?\n<can>weather\n" in said


def test_thinking_of_earlier_turns_goes_to_the_template(thinking: Served) -> None:
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "redacted_thinking", "data": "y"},
        {"type": "text", "text": "yes"},
    ]
    said = prompt(thinking, messages=[*USER, {"role": "assistant", "content": content}, *USER])
    assert said.startswith("<s><user>hi\n<assistant>(hm)yes\n<user>hi\n")


@pytest.mark.parametrize(
    "system",
    [
        "be kind",
        [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
        [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=1a2b;"}, {"type": "text", "text": "be kind"}],
    ],
    ids=["text", "list", "billing"],
)
def test_system(thinking: Served, system: Any) -> None:
    assert prompt(thinking, system=system).startswith("<s><system>be kind\n<user>hi\n")


@pytest.mark.parametrize(("role", "known"), [("system", "system"), ("ctx", "system"), ("msg", "user")])
def test_roles_in_mid_conversation(thinking: Served, role: str, known: str) -> None:
    messages = [*USER, {"role": role, "content": [{"type": "text", "text": "note"}]}, *USER]
    assert prompt(thinking, messages=messages).startswith(f"<s><user>hi\n<{known}>note\n<user>hi\n")


def test_what_claude_code_sends_besides(thinking: Served) -> None:
    body = {
        "model": "claude-haiku-4-5",
        "max_tokens": 10,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}
        ],
        "tools": [
            {**TOOLS[0], "input_examples": [ARGUMENTS]},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "context_management": {"edits": []},
        "temperature": None,
        "top_k": None,
        "system": None,
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "of-tomorrow-2030-01-01", "authorization": "Bearer none"}
    for path in ("/v1/messages?beta=true", "/v1/v1/messages?beta=true", "/messages?beta=true"):
        response = thinking.http.post(path, json=body, headers=headers)
        assert response.status_code == 200 and response.json()["model"] == "claude-haiku-4-5"
        assert response.headers["x-locallab-notes"] == "tools[1]: a tool of type 'web_search_20250305' is left out"


def test_somebody_answers(serve: Serve) -> None:
    with serve(api_key="secret") as served:
        for path in ("/", "/api/hello"):
            assert served.http.head(path).status_code == 200
        assert served.http.get("/api/hello").json() == {"message": "hello"}


def test_stop_sequences(thinking: Served, client: anthropic.Anthropic) -> None:
    thinking.script(*say("one two three", 2))
    asked: Any = {"model": "m", "max_tokens": 100, "messages": USER, "stop_sequences": ["three", "two"]}
    with client.messages.stream(**asked) as stream:
        for message in (client.messages.create(**asked), stream.get_final_message()):
            assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "two")
            assert message.content[0].type == "text" and message.content[0].text == "one "


def test_an_answer_that_is_cut_off(thinking: Served, client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="m", max_tokens=5, messages=USER)
    assert message.stop_reason == "max_tokens" and message.usage.output_tokens == 5
    thinking.script(*say(CALL[:60]))
    [call] = client.messages.create(model="m", max_tokens=60, messages=USER, tools=TOOLS).content
    assert call.type == "tool_use" and call.input == {}


@pytest.mark.parametrize(
    ("choice", "parts"),
    [
        ({"type": "any"}, ["answer: ", "call_0"]),
        ({"type": "tool", "name": "weather"}, ["weather"]),
        ({"type": "auto", "disable_parallel_tool_use": True}, ["call_0"]),
    ],
)
def test_a_choice_of_tools_is_enforced(thinking: Served, choice: Any, parts: list[str]) -> None:
    prompt(thinking, tools=TOOLS, tool_choice=choice)
    constraint = thinking.engine.submitted[-1][1].constraint
    assert constraint is not None and constraint.kind == "lark" and thinking.engine.prepared == [constraint]
    assert all(part in constraint.source for part in parts)


def test_no_tools_by_choice(thinking: Served) -> None:
    assert "<can>" not in prompt(thinking, tools=TOOLS, tool_choice={"type": "none"})


@pytest.mark.parametrize(
    "wish",
    [
        {"output_format": {"type": "json_schema", "schema": {"type": "object"}}},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
    ],
    ids=["format", "config"],
)
def test_an_answer_of_a_schema(served: Served, wish: Any) -> None:
    prompt(served, **wish)
    assert served.engine.submitted[-1][1].constraint == Constraint("json_schema", '{"type": "object"}', "output_format")


def test_counting_tokens(thinking: Served, client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "m", "messages": USER, "system": "be kind", "tools": TOOLS}
    counted = client.messages.count_tokens(**asked)
    assert counted.input_tokens == client.messages.create(**asked, max_tokens=5).usage.input_tokens > 20
    assert post(thinking, "/v1/messages/count_tokens?beta=true").status_code == 200
    assert len(thinking.engine.submitted) == 1


def test_a_prompt_that_is_too_long(thinking: Served, client: anthropic.Anthropic) -> None:
    too_long = [{"role": "user", "content": "x" * 5000}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: 50[0-9]{2} tokens > 4096 maximum"):
        client.messages.create(model="m", max_tokens=5, messages=too_long)  # type: ignore[arg-type]
    with (
        pytest.raises(anthropic.BadRequestError, match="prompt is too long"),
        client.messages.stream(
            model="m",
            max_tokens=5,
            messages=too_long,  # type: ignore[arg-type]
        ),
    ):
        pass
    assert post(thinking, "/v1/messages/count_tokens", messages=too_long).json()["input_tokens"] > 4096


IMAGE = {"type": "image", "source": {"type": "base64", "data": ""}}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no max_tokens": ({"max_tokens": None}, "max_tokens: is missing"),
    "no messages": ({"messages": None}, "messages: is missing"),
    "empty messages": ({"messages": []}, "messages: is empty"),
    "message": ({"messages": ["hi"]}, "messages[0]: expected an object with role and content"),
    "role": ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role: unknown role 'king'"),
    "block": ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]: expected text or a list of parts"),
    "image": (
        {"messages": [{"role": "user", "content": [IMAGE]}]},
        "messages[0].content[0]: this model takes no images",
    ),
    "system": ({"system": 5}, "system: expected a string or a list of text blocks"),
    "choice": ({"tool_choice": {"type": "tool", "name": "fly"}}, "tool_choice: names 'fly', which is not among the tools"),
    "thinking": ({"thinking": True}, "thinking: expected an object with a type"),
    "kind of thinking": ({"thinking": {"type": "deep"}}, "thinking.type: unknown type 'deep'"),
    "budget": ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens: expected a positive number"),
    "format": ({"output_format": {"type": "xml"}}, "output_format: expected "),
    "temperature": ({"temperature": -1}, "temperature: must be at least 0"),
}


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_request(thinking: Served, body: dict[str, Any], message: str) -> None:
    response = post(thinking, **body)
    assert response.status_code == 400
    error = response.json()
    assert set(error) == {"type", "error"} and error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    assert error["error"]["message"].startswith(message)


def test_other_errors(serve: Serve) -> None:
    with serve(api_key="secret", strict_models=True) as served:
        denied = served.http.post("/v1/messages", json={})
        assert denied.status_code == 401 and denied.json()["error"]["type"] == "authentication_error"
        with anthropic.Anthropic(base_url=served.url, api_key="secret", max_retries=0) as client:
            with pytest.raises(anthropic.NotFoundError, match="unknown model 'claude'"):
                client.messages.create(model="claude", max_tokens=5, messages=USER)
            served.engine.full = True
            with pytest.raises(anthropic.APIStatusError, match="busy") as overloaded:
                client.messages.create(model="tiny:1b", max_tokens=5, messages=USER)
            assert overloaded.value.status_code == 503 and overloaded.value.response.headers["retry-after"] == "7"
            body: Any = overloaded.value.body
            assert body["error"]["type"] == "overloaded_error"


def test_a_failure_in_mid_stream(thinking: Served, client: anthropic.Anthropic) -> None:
    go = threading.Event()
    thinking.script(b"a", go, EngineFailure("decode failed"))
    with (
        client.messages.stream(model="m", max_tokens=5, messages=USER) as stream,
        pytest.raises(anthropic.APIStatusError, match="decode failed"),
    ):
        for _ in stream:
            go.set()


def test_an_answer_that_has_begun_goes_on(thinking: Served) -> None:
    said = prompt(thinking, messages=[*USER, {"role": "assistant", "content": "Well, <s>"}])
    assert said.endswith("<user>hi\n<assistant><think></think>Well, <s>")
    assert post(thinking, messages=[*USER, {"role": "assistant", "content": "{"}]).json()["content"][0]["text"] == TEXT
    schema = {"type": "json_schema", "schema": {"type": "object"}}
    refused = post(thinking, messages=[*USER, {"role": "assistant", "content": "{"}], output_format=schema)
    assert refused.status_code == 400 and "output_format: does not go with" in refused.json()["error"]["message"]


def test_what_cannot_be_heeded_is_told(thinking: Served) -> None:
    orphan = post(
        thinking, messages=[{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "rain"}]}]
    )
    assert "answers no call" in orphan.headers["x-locallab-notes"]
