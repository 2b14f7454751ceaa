"""Truncation of a conversation of many turns."""

from __future__ import annotations

import asyncio
import types
from typing import Any

import pytest

from locallab.chat import Message
from locallab.chat.turn import ChatRequest
from locallab.engine.request import SamplingParams
from locallab.errors import ContextLengthExceeded
from locallab.server.dialects.responses import truncation

ROOM = 100


@pytest.mark.parametrize("count", [50, 30_000])
def test_few_of_many_turns_are_tried_and_one_at_a_time(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Lists of what is left for each of 30,000 turns would take gigabytes."""
    tried: list[int] = []

    async def prepare(loaded: Any, request: ChatRequest, params: Any, **options: Any) -> Any:
        tried.append(len(request.messages))
        if len(request.messages) >= ROOM:
            raise ContextLengthExceeded(len(request.messages), ROOM)
        return types.SimpleNamespace(jobs=[([0] * len(request.messages), params)], messages=request.messages)

    monkeypatch.setattr(truncation, "prepare_chat", prepare)
    info = types.SimpleNamespace(context=ROOM)
    loaded: Any = types.SimpleNamespace(engine=types.SimpleNamespace(info=info))
    request = ChatRequest(messages=[Message("system", "s"), *(Message("user", str(n)) for n in range(count))])
    notes: list[str] = []
    found: Any = asyncio.run(truncation.prepare_fitting(loaded, request, SamplingParams(), notes, truncate=True))
    left = min(count, ROOM - 2)
    assert [message.content for message in found.messages] == ["s", *(str(n) for n in range(count - left, count))]
    assert len(tried) <= 17 and bool(notes) == (count > left)
