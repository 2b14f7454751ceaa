"""Requests of Claude Code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from locallab.replay import builders
from locallab.replay.builders import AMPLE, MAY_CALL, READS_FILE, SHORT, Json
from locallab.replay.checks import service
from locallab.replay.checks.anthropic import message, message_stream
from locallab.replay.exchange import TOO_LONG, Check, Exchange, KeyStyle
from locallab.replay.message import is_model

BILLING = "x-anthropic-billing-header: cc_version=2.0; cc_entrypoint=cli;"
CLAUDE_TOOLS = [
    {
        "name": "read_file",
        "description": "Reads a file.",
        "input_schema": builders.PARAMETERS,
        "input_examples": [{"path": "README.md"}],
        "cache_control": {"type": "ephemeral"},
    },
    {"name": "finish", "input_schema": builders.NO_PARAMETERS, "eager_input_streaming": True},
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
]
CLAUDE_BODY: Json = {
    "model": "claude-haiku-4-5-20251001",
    "max_tokens": SHORT,
    "system": [
        builders.text_part(BILLING),
        builders.text_part("You are Claude Code.", cache_control={"type": "ephemeral", "ttl": "1h"}),
    ],
    "messages": [
        {"role": "user", "content": [builders.text_part("Read a file.", cache_control={"type": "ephemeral"})]},
        {"role": "system", "content": "Plan mode is on."},
    ],
    "tools": CLAUDE_TOOLS,
    "metadata": {"user_id": "user_1"},
    "stream": True,
}
CLAUDE_HISTORY = [
    {"role": "user", "content": "Read a file."},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Which one?", "signature": "c2lnbmVk"},
            {"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {"path": "README.md"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [builders.text_part("# Hello")], "is_error": False},
            builders.text_part("And now?"),
        ],
    },
]


def claude(
    doing: str,
    check: Check,
    *,
    path: str = "/v1/messages?beta=true",
    key: KeyStyle = "x-api-key",
    wrong_key: bool = False,
    **more: Any,
) -> Exchange:
    return Exchange(
        client="Claude Code",
        doing=doing,
        path=path,
        check=check,
        headers={
            "anthropic-version": "2023-06-01",
            "anthropic-beta": "claude-code-20250219,unheard-of-2027-01-01",
            "x-app": "cli",
        },
        key=key,
        wrong_key=wrong_key,
        body={**CLAUDE_BODY, **more},
    )


TOKENS = "/v1/messages/count_tokens?beta=true"
CLAUDE_CODE: Sequence[Exchange] = [
    Exchange(
        client="Claude Code",
        doing="probes the server",
        method="HEAD",
        path="/",
        check=service.code(200),
        key="none",
    ),
    Exchange(
        client="Claude Code", doing="probes the API", method="HEAD", path="/api/hello", check=service.code(200), key="none"
    ),
    claude(
        "streams with tools, a system list and a system message later on",
        message_stream(MAY_CALL, is_model("claude-haiku-4-5-20251001")),
    ),
    claude("streams with thinking, a call and its result", message_stream(MAY_CALL), key="bearer", messages=CLAUDE_HISTORY),
    claude(
        "streams a required call",
        message_stream(READS_FILE),
        tool_choice={"type": "any"},
        tools=CLAUDE_TOOLS[:1],
        max_tokens=AMPLE,
    ),
    claude(
        "requires a named tool",
        message(READS_FILE),
        stream=False,
        max_tokens=AMPLE,
        tool_choice={"type": "tool", "name": "read_file", "disable_parallel_tool_use": True},
    ),
    claude("counts tokens", service.input_tokens, path=TOKENS, max_tokens=None, stream=None),
    claude(
        "streams a prompt beyond the context", service.too_long_for_anthropic, messages=[{"role": "user", "content": TOO_LONG}]
    ),
    claude("sends an invalid body", service.anthropic_refused(400), messages=None),
    claude("sends a wrong key", service.anthropic_refused(401), wrong_key=True),
]
