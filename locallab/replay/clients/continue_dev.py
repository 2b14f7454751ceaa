"""Requests of Continue."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.replay import builders
from locallab.replay.builders import MAY_CALL, SHORT, chat, ollama, streaming
from locallab.replay.checks import service
from locallab.replay.checks.ollama import ollama_stream
from locallab.replay.checks.openai import stream, whole
from locallab.replay.exchange import MODEL, Exchange
from locallab.replay.message import one_call_at_most

BOTH_KEYS = {"api-key": "", "x-api-key": ""}
CONTINUE: Sequence[Exchange] = [
    streaming(
        "Continue",
        "streams with tools, at most one call",
        stream(MAY_CALL, one_call_at_most, usage=True),
        messages=builders.history(" "),
        tools=builders.tools(),
        parallel_tool_calls=False,
        headers=BOTH_KEYS,
    ),
    chat("Continue", "sends a prediction", whole(), prediction={"type": "content", "content": "none"}, headers=BOTH_KEYS),
    chat("Continue", "sends its key twice", whole(), key="both"),
    Exchange(
        client="Continue",
        doing="fills in code",
        path="/v1/fim/completions",
        check=service.filled_in,
        body={"model": MODEL, "prompt": "def add(a, b):\n    ", "suffix": "\n", "max_tokens": SHORT, "stream": True},
    ),
    Exchange(
        client="Continue",
        doing="streams through llama.cpp's API",
        path="/completion",
        check=service.llama_stream,
        body={"prompt": "One, two,", "n_predict": SHORT, "stream": True, "temperature": 0, "stop": None, "raw": True},
    ),
    Exchange(
        client="Continue",
        doing="ranks documents",
        path="/v1/rerank",
        check=service.ranked,
        body={"model": MODEL, "query": "city", "documents": ["Oslo", "blue"]},
    ),
    ollama("Continue", "streams with tools through Ollama's API", ollama_stream(MAY_CALL), tools=builders.tools()),
]
