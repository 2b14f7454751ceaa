"""Parts of requests that several clients share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locallab.replay.exchange import MODEL, Check, Exchange, KeyStyle
from locallab.replay.message import Wish, calls, known_calls, says_json

Json = Mapping[str, Any]

SHORT = 16
"""Maximum tokens of an answer whose text does not matter."""

AMPLE = 1024
"""Maximum tokens that suffice to reason and to call the tool below."""

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
    """Return a tool of chat completions."""
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
    """Return a conversation with a tool call, whose message has the content `content`."""
    called = {"role": "assistant", "content": content, "tool_calls": [call()]}
    return [user(), called, {"role": "tool", "tool_call_id": "call_1", "content": "# Hello"}]


def json_schema(strict: bool = True) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "place", "strict": strict, "schema": SCHEMA}}


CHAT = "/v1/chat/completions"
NO_HEADERS: Mapping[str, str] = {}


def chat(
    client: str,
    doing: str,
    check: Check,
    *,
    headers: Mapping[str, str] = NO_HEADERS,
    path: str = CHAT,
    key: KeyStyle = "bearer",
    wrong_key: bool = False,
    **body: Any,
) -> Exchange:
    """Return a request for a chat completion."""
    limit = {} if "max_completion_tokens" in body else {"max_tokens": SHORT}
    body = {"model": MODEL, "messages": [user()], **limit, **body}
    return Exchange(
        client=client, doing=doing, path=path, check=check, headers=headers, key=key, wrong_key=wrong_key, body=body
    )


def streaming(client: str, doing: str, check: Check, **more: Any) -> Exchange:
    """Return a request for a streamed chat completion; most clients request the usage."""
    return chat(client, doing, check, **{"stream": True, "stream_options": {"include_usage": True}, **more})


def get(client: str, doing: str, path: str, check: Check) -> Exchange:
    return Exchange(client=client, doing=doing, method="GET", path=path, check=check)


PLACE = says_json(city=str, coastal=bool)


def ollama(client: str, doing: str, check: Check, **body: Any) -> Exchange:
    """Return a request for a chat through Ollama's API."""
    body = {"model": MODEL, "messages": [user()], "options": {"num_ctx": 32768, "num_predict": SHORT}, **body}
    return Exchange(client=client, doing=doing, path="/api/chat", check=check, body=body)
