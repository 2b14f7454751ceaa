"""Requests of LangChain."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.replay import builders
from locallab.replay.builders import AMPLE, PLACE, READS_FILE, chat, streaming
from locallab.replay.checks.openai import stream, whole
from locallab.replay.exchange import Exchange
from locallab.replay.message import answers, has_logprobs

LANGCHAIN: Sequence[Exchange] = [
    chat(
        "LangChain",
        "requests JSON of a schema",
        whole(PLACE),
        max_completion_tokens=AMPLE,
        response_format=builders.json_schema(),
        messages=[{"role": "user", "content": [builders.text_part("Where is the Colosseum?")]}],
    ),
    streaming(
        "LangChain",
        "streams a required call",
        stream(READS_FILE, usage=True),
        max_completion_tokens=AMPLE,
        tools=builders.tools(strict=True),
        tool_choice=builders.named(),
    ),
    chat("LangChain", "requests two answers", whole(answers(2)), n=2),
    chat("LangChain", "requests logprobs", whole(has_logprobs), logprobs=True, top_logprobs=2),
]
