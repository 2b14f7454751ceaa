"""Conversations that are too long for the model, for clients that would rather lose the oldest turns than get an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from locallab.chat import Message
from locallab.chat.turn import ChatRequest
from locallab.engine.request import SamplingParams
from locallab.pool import Loaded
from locallab.server.inference.prompt import PreparedChat, prepare_chat


async def ask_fitting(
    loaded: Loaded, request: ChatRequest, params: SamplingParams, notes: list[str], *, truncate: bool
) -> PreparedChat:
    """As `ask`; with `truncate` without so many of the oldest turns that the rest fits, if the last turn alone does."""
    asked = await prepare_chat(loaded, request, params)
    if not truncate or _fits(loaded, asked):
        return asked
    shorter = [dataclasses.replace(request, messages=messages) for messages in _shortened(request.messages)]
    low, high, best = 0, len(shorter), asked
    while low < high:  # the first of them that fits: each is shorter than the one before
        middle = (low + high) // 2
        tried = await prepare_chat(loaded, shorter[middle], params)
        if _fits(loaded, tried):
            high, best = middle, tried
        else:
            low = middle + 1
    if best is not asked:
        left_out = len(request.messages) - len(shorter[low].messages)
        notes.append(f"input: the oldest {left_out} messages are left out, for truncation is auto and they do not fit")
    return best


def _fits(loaded: Loaded, asked: PreparedChat) -> bool:
    return len(asked.jobs[0][0]) < loaded.engine.info.context


def _shortened(messages: Sequence[Message]) -> list[list[Message]]:
    """The conversation without its oldest turn, its two oldest, and so on. A turn begins with the user; what the system says at
    the beginning stays."""
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    turns = [i for i, message in enumerate(messages) if message.role == "user" and i > start]
    return [[*messages[:start], *messages[turn:]] for turn in turns]
