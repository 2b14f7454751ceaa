from __future__ import annotations

import json
from typing import Any

import pytest

from locallab.cli.doctor.cache.advice import KINDS, kind_of
from locallab.cli.doctor.cache.cause import find


def talk(*texts: str, system: str = "Be kind.") -> dict[str, Any]:
    """A conversation that begins with the user, and answers in turn."""
    roles = ["user", "assistant"] * len(texts)
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"messages": [{"role": "system", "content": system}, *turns]}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


CALLED = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "yes"},
]
THOUGHT = {"role": "assistant", "content": "b", "reasoning_content": "hm"}
BLOCKS = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"}]


def edited(messages: list[Any], index: int, **change: Any) -> list[Any]:
    return [*messages[:index], {**messages[index], **change}, *messages[index + 1 :]]


CASES: dict[str, tuple[str, Any, Any]] = {
    "a date": ("time", talk("a", system="It is 2026-11-28."), talk("a", system="It is 2026-11-29.")),
    "a time": ("time", talk("a", system="Now: 10:05, be brief"), talk("a", system="Now: 10:17, be brief")),
    "a day in words": ("time", talk("a", system="28 November 2026"), talk("a", system="3 December 2026")),
    "another day in words": ("time", talk("a", system="on November 28, 2026"), talk("a", system="on November 29, 2026")),
    "an id": ("identifier", talk("a", system="session 7f3a9c2e0b"), talk("a", system="session 81bc04d2aa")),
    "a time in an earlier message": ("time", talk("10:05 a", "b", "c"), talk("10:06 a", "b", "c", "d", "e")),
    "spaces": ("whitespace", talk("a", system="Be  kind."), talk("a", system="Be kind.\n")),
    "spaces in an answer": ("whitespace", talk("a", "b ", "c"), talk("a", "b", "c")),
    "a system prompt": ("system", talk("a", system="You may act."), talk("a", system="You must act.")),
    "a system prompt less": ("system", talk("a"), {"messages": talk("a")["messages"][1:]}),
    "instructions": ("system", {"instructions": "a", "input": "x"}, {"instructions": "b", "input": "x"}),
    "Anthropic's system": ("system", {"system": [{"type": "text", "text": "a"}]}, {"system": [{"type": "text", "text": "b"}]}),
    "reordered tools": ("tools reordered", {"tools": [tool("f"), tool("g")]}, {"tools": [tool("g"), tool("f")]}),
    "another tool": ("tools", {"tools": [tool("f")]}, {"tools": [tool("g")]}),
    "a tool more": ("tools", {"tools": [tool("f")]}, {"tools": [tool("f"), tool("g")]}),
    "no tools": ("tools", {"tools": [tool("f")]}, {}),
    "keys of a schema": (
        "keys",
        {"tools": [tool("f", parameters={"type": "object", "title": "t"})]},
        {"tools": [tool("f", parameters={"title": "t", "type": "object"})]},
    ),
    "dropped reasoning": (
        "reasoning",
        {"messages": [CALLED[0], THOUGHT]},
        {"messages": [CALLED[0], {"role": "assistant", "content": "b"}]},
    ),
    "a dropped block": (
        "reasoning",
        {"messages": [CALLED[0], {"role": "assistant", "content": BLOCKS}]},
        {"messages": [CALLED[0], {"role": "assistant", "content": BLOCKS[1:]}]},
    ),
    "a dropped item": (
        "reasoning",
        {"input": [CALLED[0], {"type": "reasoning", "content": []}, {"role": "assistant", "content": "b"}]},
        {"input": [CALLED[0], {"role": "assistant", "content": "b"}]},
    ),
    "an edited answer": ("answer", talk("a", "b", "c"), talk("a", "B", "c")),
    "an edited call": (
        "answer",
        {"messages": CALLED},
        {"messages": edited(CALLED, 1, tool_calls=[{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}])},
    ),
    "an edited result": ("result", {"messages": CALLED}, {"messages": edited(CALLED, 2, content="[cleared]")}),
    "an edited result block": (
        "result",
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "a"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "b"}]}]},
    ),
    "an edited message": ("history", talk("a", "b", "c", "d", "e"), talk("a", "b", "C", "d", "e")),
    "messages left out": ("left out", talk("a", "b", "c", "d", "e"), talk("c", "d", "e")),
    "a message put in": ("left out", talk("a", "b", "c"), talk("z", "y", "a", "b", "c")),
    "another question": ("question", talk("a", "b", "c"), talk("a", "b", "x")),
    "another conversation": ("question", talk("a", "b", "c"), talk("x", "y", "z")),
    "another input": ("question", {"input": "a"}, {"input": "b"}),
    "messages that follow": ("template", talk("a"), talk("a", "b", "c")),
    "a conversation that ends": ("ends", talk("a", "b", "c"), talk("a")),
    "an option": ("options", {"reasoning_effort": "low"}, {"reasoning_effort": "high"}),
    "a prompt": ("prompt", {"prompt": "a"}, {"prompt": "b"}),
    "a prompt with a time": ("time", {"prompt": "at 10:05: a"}, {"prompt": "at 11:05: a"}),
}


@pytest.mark.parametrize(("kind", "a", "b"), CASES.values(), ids=CASES)
def test_kind(kind: str, a: Any, b: Any) -> None:
    a, b = json.loads(json.dumps(a)), json.loads(json.dumps(b))
    field = ("tools",) if kind == "tools reordered" else find(a, b, lambda changed: True)
    assert kind_of(field, a, b) == kind
    assert kind in KINDS


def test_no_single_field() -> None:
    assert kind_of((), {}, {}) == "several"


@pytest.mark.parametrize("word", ["maybe", "marked", "decide", "v2", "4.5"])
def test_words_and_figures_are_no_times(word: str) -> None:
    assert kind_of(("system",), {"system": f"It is {word} so"}, {"system": f"It is {word[:-1]}q so"}) == "system"
