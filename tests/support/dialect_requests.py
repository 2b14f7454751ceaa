"""A model that reasons and calls tools, and its answers in pieces of any size."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from locallab.chat import ChatTemplate, Message
from locallab.chat.tools import Tool
from locallab.chat.turn import ChatRequest, Turn, plan
from locallab.engine.request import TokenEvent, Usage

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }} {{ c.id }}]{% endfor %}"
    "{% if m.tool_call_id %}[{{ m.tool_call_id }}]{% endif %}{{ '\n' }}{% endfor %}"
    "{% for tool in tools or [] %}<can>{{ tool.function.name }}\n{% endfor %}"
    "{% if reasoning_effort %}<effort>{{ reasoning_effort }}\n{% endif %}"
    "<assistant>{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{# It writes <tool_call>{...}</tool_call>. #}"
)

THOUGHT = "so it goes"
SAID = "Grüße 😀, I look."
ARGUMENTS = {"place": "Zürich", "days": 2}
CALL = f"<tool_call>\n{json.dumps({'name': 'weather', 'arguments': ARGUMENTS}, ensure_ascii=False)}\n</tool_call>"
RAW = f"<think>{THOUGHT}</think>\n\n{SAID}\n{CALL}\n{CALL}"

PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}}

USER = {"messages": [{"role": "user", "content": "hello there"}]}
ROUTES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "hello there"},
    "/chat": USER,
    "/v1/chat/completions": USER,
    "/v1/completions": {"prompt": "hello there"},
    "/v1/fim/completions": {"prompt": "hello there", "suffix": "end"},
    "/infill": {"input_prefix": "hello there", "input_suffix": "end"},
    "/completion": {"prompt": "hello there"},
    "/v1/responses": {"input": "hello there"},
    "/v1/messages": {"model": "any", "max_tokens": 99, **USER},
    "/api/chat": {"model": "tiny:1b", **USER},
    "/api/generate": {"model": "tiny:1b", "prompt": "hello there"},
    **{
        f"/api/v1/assistant/{task}": {"prompt": "hello there"}
        for task in ("generate", "refactor", "debug", "audit", "document", "chat")
    },
}
"""The body of a request to each path that generates."""


def turn() -> Turn:
    """Return the turn of a request with a tool."""
    request = ChatRequest(messages=[Message("user", "hi")], tools=(Tool("weather", parameters=PARAMETERS),))
    return plan(request, ChatTemplate(TEMPLATE), {})


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def news(pieces: Sequence[str], reason: Any = "stop") -> list[list[tuple[int, TokenEvent]]]:
    """Return the events of an answer in these pieces."""
    events = [TokenEvent(piece, (1,)) for piece in pieces]
    end = TokenEvent("", finish_reason=reason, usage=Usage(5, len(pieces), 2))
    return [[(0, event)] for event in (*events, end)]


cuts = st.lists(st.integers(0, 10_000), max_size=12)


def named_events(text: str) -> list[dict[str, Any]]:
    """Parse server-sent events whose names are the types of their data."""
    assert text.endswith("\n\n")
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


TASKS = ("generate", "refactor", "debug", "audit", "document", "chat")
