from __future__ import annotations

import json
from typing import Any

import pytest

from locallab.chat.messages import Message, ToolCall, folded, without_system
from locallab.chat.repairs import normalize
from locallab.errors import InvalidField

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}

TAKEN: dict[str, tuple[dict[str, Any], Message]] = {
    "plain": ({"role": "user", "content": "hi"}, Message("user", "hi")),
    "null content": ({"role": "assistant", "content": None}, Message("assistant", "")),
    "no content": ({"role": "assistant"}, Message("assistant", "")),
    "empty content": ({"role": "user", "content": ""}, Message("user", "")),
    "empty list": ({"role": "user", "content": []}, Message("user", "")),
    "text parts": (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        Message("user", "a\nb"),
    ),
    "refusal part": ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, Message("assistant", "no")),
    "part with null text": ({"role": "user", "content": [{"type": "text", "text": None}]}, Message("user", "")),
    "part without type": ({"role": "user", "content": [{"text": "a"}, "b"]}, Message("user", "a\nb")),
    "cache control": (
        {"role": "system", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        Message("system", "a"),
    ),
    "developer": ({"role": "developer", "content": "a"}, Message("system", "a")),
    "null name": ({"role": "user", "name": None, "content": "a", "extra": 1}, Message("user", "a")),
    "tool calls": (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        Message("assistant", "", tool_calls=(ToolCall("c1", "f", '{"x": 1}'),)),
    ),
    "arguments as an object": (
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
        Message("assistant", "", tool_calls=(ToolCall("", "f", '{"x": 1}'),)),
    ),
    "no tool calls": ({"role": "assistant", "content": "a", "tool_calls": []}, Message("assistant", "a")),
    "thoughts": ({"role": "assistant", "content": "a", "reasoning_content": "hm"}, Message("assistant", "a", reasoning="hm")),
    "thoughts as others name them": (
        {"role": "assistant", "content": "a", "reasoning_content": None, "reasoning": "hm"},
        Message("assistant", "a", reasoning="hm"),
    ),
    "thoughts of a wrong type": ({"role": "assistant", "content": "a", "reasoning": {"x": 1}}, Message("assistant", "a")),
    "thoughts of the user": ({"role": "user", "content": "a", "thinking": "hm"}, Message("user", "a")),
    "function call": (
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        Message("assistant", "", tool_calls=(ToolCall("", "f", "{}"),)),
    ),
}

REFUSED: dict[str, tuple[Any, str]] = {
    "missing": (None, "messages"),
    "text": ("hi", "messages"),
    "empty": ([], "messages"),
    "text as message": (["hi"], "messages[0]"),
    "no role": ([{"content": "a"}], "messages[0].role"),
    "unknown role": ([{"role": "user", "content": "a"}, {"role": "robot", "content": "a"}], "messages[1].role"),
    "role of a wrong type": ([{"role": ["user"], "content": "a"}], "messages[0].role"),
    "number as content": ([{"role": "user", "content": 1}], "messages[0].content"),
    "object as content": ([{"role": "user", "content": {"text": "a"}}], "messages[0].content"),
    "number as part": ([{"role": "user", "content": [1]}], "messages[0].content"),
    "number as text": ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages[0].content"),
    "image": ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content"),
    "unknown part": ([{"role": "user", "content": [{"type": "video"}]}], "messages[0].content"),
    "type of a wrong type": ([{"role": "user", "content": [{"type": {}, "text": "a"}, {"type": [1]}]}], "messages[0].content"),
    "name of a wrong type": ([{"role": "user", "content": "a", "name": 1}], "messages[0].name"),
}


@pytest.mark.parametrize(("raw", "expected"), TAKEN.values(), ids=TAKEN)
def test_taken(raw: dict[str, Any], expected: Message) -> None:
    assert normalize([raw]) == [expected]


CALLED = {"role": "assistant", "tool_calls": [CALL]}
CALLED_BEFORE = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("call", "result", "expected"),
    [
        (CALLED, {"role": "tool", "tool_call_id": "c1", "content": "1"}, Message("tool", "1", tool_call_id="c1")),
        (CALLED_BEFORE, {"role": "function", "name": "f", "content": "1"}, Message("tool", "1", name="f")),
    ],
    ids=["tool", "function"],
)
def test_results_of_calls(call: dict[str, Any], result: dict[str, Any], expected: Message) -> None:
    notes: list[str] = []
    assert normalize([call, result], notes)[1] == expected
    assert notes == []


@pytest.mark.parametrize(
    ("message", "repaired"),
    [
        ({"role": "tool", "tool_call_id": "gone", "content": "1"}, Message("user", "Result of a tool: 1")),
        ({"role": "function", "name": "f", "content": "1"}, Message("user", "Result of f: 1")),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"x": '}}]},
            Message("assistant", "", tool_calls=(ToolCall("c", "f", '{"raw": "{\\"x\\": "}'),)),
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "[1]"}}]},
            Message("assistant", "", tool_calls=(ToolCall("c", "f", '{"raw": "[1]"}'),)),
        ),
    ],
    ids=["orphan", "orphan of a function", "broken arguments", "arguments that are a list"],
)
def test_repairs_are_noted(message: dict[str, Any], repaired: Message) -> None:
    notes: list[str] = []
    assert normalize([message], notes) == [repaired]
    assert len(notes) == 1 and notes[0].startswith("messages[0]")


@pytest.mark.parametrize(("raw", "field"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(raw: Any, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        normalize(raw)
    assert caught.value.field == field


def test_image_says_why() -> None:
    with pytest.raises(InvalidField, match="this model takes no images"):
        normalize([{"role": "user", "content": [{"type": "input_image"}]}])


def test_folded_is_one_system_message_and_turns() -> None:
    messages = [
        Message("system", "s1"),
        Message("system", "s2"),
        Message("user", "u1"),
        Message("system", "s3"),
        Message("assistant", "a1", tool_calls=(ToolCall("c", "f", '{"x": 1}'),)),
        Message("tool", "t1"),
        Message("user", "u2"),
    ]
    assert folded(messages) == [
        Message("system", "s1\n\ns2"),
        Message("user", "u1\n\ns3"),
        Message("assistant", 'a1\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'),
        Message("user", "t1\n\nu2"),
    ]
    assert [m.role for m in without_system(messages)] == ["user", "assistant", "user"]
    assert without_system(messages)[0].content == "s1\n\ns2\n\nu1\n\ns3"


@pytest.mark.parametrize(
    ("messages", "roles"),
    [
        ([Message("assistant", "a")], ["user", "assistant"]),
        ([Message("system", "s")], ["system", "user"]),
        ([Message("system", "s"), Message("assistant", "a")], ["system", "user", "assistant"]),
    ],
    ids=["assistant first", "system only", "no user"],
)
def test_folded_lets_the_user_begin(messages: list[Message], roles: list[str]) -> None:
    assert [m.role for m in folded(messages)] == roles


def test_arguments_that_are_nested_too_deeply_stay_text() -> None:
    deep = '{"a":' * 5_000 + "1" + "}" * 5_000
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": deep}}
    notes: list[str] = []
    [message] = normalize([{"role": "assistant", "content": "", "tool_calls": [call]}], notes)
    assert json.loads(message.tool_calls[0].arguments) == {"raw": deep} and "not a JSON object" in notes[0]
