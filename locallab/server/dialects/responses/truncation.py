"""Truncation of conversations that are too long for the model, for clients that prefer it to an error."""

from __future__ import annotations

import dataclasses

from locallab.chat.turn import ChatRequest
from locallab.engine.request import SamplingParams
from locallab.pool import Loaded
from locallab.server.inference.prompt import PreparedChat, prepare_chat


async def prepare_fitting(
    loaded: Loaded, request: ChatRequest, params: SamplingParams, notes: list[str], *, truncate: bool
) -> PreparedChat:
    """Prepare as `prepare_chat`; with `truncate`, drop as few of the oldest turns as needed to fit, if the last turn does."""
    whole = await prepare_chat(loaded, request, params, fits=False)
    if not truncate or _fits(loaded, whole):
        return whole
    # Without the oldest turn, the two oldest, and so on. A turn begins with the user; system messages at the beginning stay.
    messages = request.messages
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    turns = [i for i, message in enumerate(messages) if message.role == "user" and i > start]
    shorter = [dataclasses.replace(request, messages=[*messages[:start], *messages[turn:]]) for turn in turns]
    low, high, best = 0, len(shorter), whole
    while low < high:  # find the first that fits: each is shorter than the one before
        middle = (low + high) // 2
        tried = await prepare_chat(loaded, shorter[middle], params, fits=False)
        if _fits(loaded, tried):
            high, best = middle, tried
        else:
            low = middle + 1
    if best is not whole:
        left_out = len(request.messages) - len(shorter[low].messages)
        notes.append(f"input: the oldest {left_out} messages are left out, for truncation is auto and they do not fit")
    return best


def _fits(loaded: Loaded, chat: PreparedChat) -> bool:
    return len(chat.jobs[0][0]) < loaded.engine.info.context
