"""Requests of Cursor."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.replay import builders
from locallab.replay.builders import MAY_CALL, chat, streaming
from locallab.replay.checks.openai import stream, whole
from locallab.replay.exchange import Exchange

CURSOR: Sequence[Exchange] = [
    chat("Cursor", "tests the key", whole(), max_tokens=1, path="/v1//chat/completions"),
    streaming(
        "Cursor",
        "streams with tools and lists of content",
        stream(MAY_CALL, usage=True),
        tools=builders.tools(),
        messages=[{"role": "user", "content": [builders.text_part("Read a file.")]}],
    ),
]
