"""Requests of Roo."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.replay import builders
from locallab.replay.builders import AMPLE, MAY_CALL, READS_FILE, SHORT, get, streaming, user
from locallab.replay.checks import service
from locallab.replay.checks.openai import stream
from locallab.replay.exchange import TOO_LONG, Exchange

SYSTEM_LIST = {"role": "system", "content": [builders.text_part("You are Roo.", cache_control={"type": "ephemeral"})]}
ROO: Sequence[Exchange] = [
    streaming(
        "Roo",
        "streams with tools, a system list and an effort",
        stream(MAY_CALL, usage=True),
        messages=[SYSTEM_LIST, user()],
        tools=builders.tools(strict=True),
        tool_choice="auto",
        parallel_tool_calls=True,
        max_completion_tokens=SHORT,
        reasoning_effort="medium",
        temperature=0,
    ),
    streaming(
        "Roo",
        "streams a required call",
        stream(READS_FILE, usage=True),
        tools=[builders.tool(strict=True)],
        tool_choice="required",
        max_completion_tokens=AMPLE,
        reasoning_effort="minimal",
    ),
    get("Roo", "lists models", "/v1/models", service.models),
    streaming("Roo", "streams a prompt beyond the context", service.too_long, messages=[user(TOO_LONG)]),
]
