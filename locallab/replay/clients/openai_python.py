"""Requests of openai-python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locallab.replay import builders
from locallab.replay.builders import AMPLE, READS_FILE, SHORT, chat, get, streaming, user
from locallab.replay.checks import service
from locallab.replay.checks.openai import stream, whole
from locallab.replay.exchange import MODEL, TOO_LONG, Exchange
from locallab.replay.message import is_model

STAINLESS = {"x-stainless-lang": "python", "x-stainless-os": "Linux", "x-stainless-retry-count": "0"}
UNSET = (
    *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "n", "stop", "seed", "tools"),
    *("tool_choice", "parallel_tool_calls", "response_format", "user", "metadata", "store", "service_tier", "temperature"),
    *("top_p", "stream", "stream_options", "reasoning_effort", "modalities", "prediction", "functions", "function_call"),
)
NULLS: Mapping[str, Any] = dict.fromkeys(UNSET)

OPENAI_PYTHON: Sequence[Exchange] = [
    chat("openai-python", "sets every field to null", whole(), headers=STAINLESS, **NULLS),
    chat(
        "openai-python",
        "reads back the requested model name",
        whole(is_model("gpt-4o-mini")),
        headers=STAINLESS,
        model="gpt-4o-mini",
    ),
    streaming("openai-python", "streams without the usage", stream(), headers=STAINLESS, stream_options=None),
    get("openai-python", "lists models", "/v1/models", service.models),
    get("openai-python", "looks up a model", f"/v1/models/{MODEL}", service.model),
    chat(
        "openai-python",
        "requires a named tool",
        whole(READS_FILE),
        max_tokens=AMPLE,
        tools=builders.tools(strict=True),
        tool_choice=builders.named(),
    ),
    chat("openai-python", "sends an invalid body", service.refused(400, param="messages"), messages=None),
    chat("openai-python", "sends a prompt beyond the context", service.too_long, messages=[user(TOO_LONG)]),
    Exchange(
        client="openai-python",
        doing="streams a completion",
        path="/v1/completions",
        check=service.completion_stream,
        body={
            "model": MODEL,
            "prompt": "One, two,",
            "max_tokens": SHORT,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    chat("openai-python", "sends a wrong key", service.refused(401), wrong_key=True),
]
