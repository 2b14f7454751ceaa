"""Requests of Cline."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.replay import builders
from locallab.replay.builders import MAY_CALL, get, ollama, streaming, user
from locallab.replay.checks import service
from locallab.replay.checks.ollama import ollama_stream
from locallab.replay.checks.openai import stream
from locallab.replay.exchange import TOO_LONG, Exchange

CLINE: Sequence[Exchange] = [
    streaming(
        "Cline",
        "streams",
        stream(usage=True),
        temperature=0,
        messages=[{"role": "system", "content": "You are Cline."}, user()],
    ),
    streaming(
        "Cline",
        "streams with tools and lists of content",
        stream(MAY_CALL, usage=True),
        tools=builders.tools(strict=True),
        messages=[{"role": "user", "content": [builders.text_part("Read a file."), builders.text_part("<env/>")]}],
    ),
    streaming("Cline", "streams a prompt beyond the context", service.too_long, messages=[user(TOO_LONG)]),
    get("Cline", "lists Ollama's models", "/api/tags", service.has("models.0.name", "models.0.model")),
    ollama("Cline", "streams through Ollama's API", ollama_stream()),
]
