"""Requests of aider."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.replay.builders import chat, streaming, user
from locallab.replay.checks import service
from locallab.replay.checks.openai import stream, whole
from locallab.replay.exchange import TOO_LONG, Exchange

AIDER: Sequence[Exchange] = [
    streaming("aider", "streams", stream(), stream_options=None, temperature=0, model="local/a-model-nobody-knows"),
    chat("aider", "sends fields of its own", whole(), num_ctx=8192, extra_body={"a": 1}, timeout=600),
    chat("aider", "sends an invalid body", service.refused(400), temperature="hot"),
    chat("aider", "sends a prompt beyond the context", service.too_long, messages=[user(TOO_LONG)]),
]
