"""Parts of requests that several clients send alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locallab.clients.said import Wish, calls, known_calls

Json = Mapping[str, Any]

SHORT = 16
"""Tokens of an answer whose words do not matter."""

AMPLE = 1024
"""Tokens in which a model can think, and call the tool below."""

FILES = ("README.md", "setup.cfg")
PARAMETERS: Json = {
    "type": "object",
    "properties": {"path": {"type": "string", "enum": list(FILES), "description": "the file to read"}},
    "required": ["path"],
    "additionalProperties": False,
}
NO_PARAMETERS: Json = {"type": "object", "properties": {}, "additionalProperties": False}

READS_FILE: Wish = calls("read_file", path=FILES)
MAY_CALL: Wish = known_calls("read_file", "finish")

SCHEMA: Json = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}, "coastal": {"type": "boolean"}},
    "required": ["city", "coastal"],
    "additionalProperties": False,
}


def user(text: str = "Which files are there? Answer in one word.") -> Json:
    return {"role": "user", "content": text}


def text_part(text: str, **more: Any) -> Json:
    return {"type": "text", "text": text, **more}


def tool(strict: bool = False) -> Json:
    """A tool as chat completions have it."""
    function = {"name": "read_file", "description": "Reads a file.", "parameters": PARAMETERS}
    return {"type": "function", "function": {**function, "strict": True} if strict else function}


def tools(strict: bool = False) -> Sequence[Json]:
    function: Json = {"name": "finish", "description": None, "parameters": NO_PARAMETERS}
    return [tool(strict), {"type": "function", "function": {**function, "strict": True} if strict else function}]


def named(name: str = "read_file") -> Json:
    return {"type": "function", "function": {"name": name}}


def call(arguments: str = '{"path": "README.md"}', id: str = "call_1") -> Json:
    return {"id": id, "type": "function", "function": {"name": "read_file", "arguments": arguments}}


def history(content: str | None = None) -> Sequence[Json]:
    """A conversation in which a tool was called, the message of the call having the content `content`."""
    called = {"role": "assistant", "content": content, "tool_calls": [call()]}
    return [user(), called, {"role": "tool", "tool_call_id": "call_1", "content": "# Hello"}]


def json_schema(strict: bool = True) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "place", "strict": strict, "schema": SCHEMA}}
