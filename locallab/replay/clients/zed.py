"""Requests of Zed."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.replay import builders
from locallab.replay.builders import AMPLE, MAY_CALL, READS_FILE, SHORT, get, streaming
from locallab.replay.checks import service
from locallab.replay.checks.openai import stream
from locallab.replay.exchange import MODEL, Exchange
from locallab.replay.message import no_calls, one_call_at_most

ZED: Sequence[Exchange] = [
    streaming(
        "Zed",
        "streams with tools",
        stream(MAY_CALL, one_call_at_most, usage=True),
        tools=builders.tools(),
        max_completion_tokens=SHORT,
        prompt_cache_key="thread-1",
        reasoning_effort="low",
        parallel_tool_calls=False,
        tool_choice="auto",
        stop=[],
        temperature=1.0,
    ),
    streaming(
        "Zed",
        "streams a required call",
        stream(READS_FILE, usage=True),
        tools=[builders.tool()],
        tool_choice="required",
        max_completion_tokens=AMPLE,
    ),
    streaming("Zed", "forbids calls", stream(no_calls, usage=True), tools=builders.tools(), tool_choice="none"),
    get("Zed", "reads the context from the models", "/v1/models", service.context_reported),
    get("Zed", "asks llama.cpp's API for the context", "/props", service.has("default_generation_settings.n_ctx", kind=int)),
    Exchange(
        client="Zed",
        doing="asks Ollama's API for the capabilities",
        path="/api/show",
        body={"model": MODEL},
        check=service.has("capabilities", kind=list),
    ),
]
