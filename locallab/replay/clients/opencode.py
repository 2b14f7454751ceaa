"""Requests of the AI SDK, as opencode uses it."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.replay import builders
from locallab.replay.builders import AMPLE, MAY_CALL, PLACE, READS_FILE, chat, get, streaming
from locallab.replay.checks import service
from locallab.replay.checks.openai import stream, whole
from locallab.replay.exchange import Exchange

AI_SDK: Sequence[Exchange] = [
    streaming(
        "opencode",
        "streams with a tool's result, the call without content",
        stream(MAY_CALL, usage=True),
        messages=builders.history(None),
        tools=builders.tools(),
        tool_choice="auto",
    ),
    streaming(
        "opencode",
        "streams a required call",
        stream(READS_FILE, usage=True),
        max_tokens=AMPLE,
        tools=[builders.tool()],
        tool_choice="required",
    ),
    chat("opencode", "requests JSON of a schema", whole(PLACE), max_tokens=AMPLE, response_format=builders.json_schema()),
    get("opencode", "lists models", "/v1/models", service.models),
]
