"""Requests of Codex CLI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from locallab.replay import builders
from locallab.replay.builders import AMPLE, MAY_CALL, READS_FILE, SHORT, Json, get
from locallab.replay.checks import service
from locallab.replay.checks.responses import response_stream
from locallab.replay.exchange import MODEL, TOO_LONG, Check, Exchange


def message(text: str, role: str = "user") -> Json:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def function(name: str = "read_file", parameters: Json = builders.PARAMETERS) -> Json:
    return {"type": "function", "name": name, "description": "Reads a file.", "strict": False, "parameters": parameters}


CODEX_TOOLS = [
    function(),
    function("finish", builders.NO_PARAMETERS),
    {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}},
    {"type": "web_search", "external_web_access": False},
    {"type": "local_shell"},
    {"type": "namespace", "name": "mcp", "tools": []},
    {"type": "image_generation", "output_format": "png"},
]
CODEX_BODY: Json = {
    "model": MODEL,
    "instructions": "You are Codex.",
    "input": [message("Sandboxed.", "developer"), message("Read a file.")],
    "tools": CODEX_TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "conversation-1",
    "text": {"verbosity": "low"},
    "max_output_tokens": SHORT,
}
CODEX_HISTORY = [
    message("Read a file."),
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
    {"type": "function_call", "name": "read_file", "arguments": '{"path": "README.md"}', "call_id": "call_1"},
    {"type": "function_call_output", "call_id": "call_1", "output": "# Hello"},
]


def codex(doing: str, check: Check, **body: Any) -> Exchange:
    headers = {"originator": "codex_cli_rs", "accept": "text/event-stream", "session_id": "conversation-1"}
    return Exchange(
        client="Codex CLI", doing=doing, path="/v1/responses", check=check, headers=headers, body={**CODEX_BODY, **body}
    )


CODEX: Sequence[Exchange] = [
    codex("streams with tools of every type", response_stream(MAY_CALL)),
    codex("streams with a call, its result and reasoning without content", response_stream(MAY_CALL), input=CODEX_HISTORY),
    codex(
        "streams a required call",
        response_stream(READS_FILE),
        tool_choice="required",
        tools=CODEX_TOOLS[:1],
        max_output_tokens=AMPLE,
    ),
    codex("sends an empty request", response_stream(), input=[], tools=[], instructions="", max_output_tokens=1),
    codex("streams a prompt beyond the context", service.too_long_for_codex, input=[message(TOO_LONG)]),
    get("Codex CLI", "lists models", "/v1/models?client_version=0.99.0", service.models),
]
