"""Truncation of conversations that are too long for the model, for clients that prefer it to an error."""

from __future__ import annotations

import dataclasses

from locallab.chat.turn import ChatRequest
from locallab.engine.request import SamplingParams
from locallab.errors import ContextLengthExceeded
from locallab.pool import Loaded
from locallab.server.inference.prompt import PreparedChat, prepare_chat


async def prepare_fitting(
    loaded: Loaded, request: ChatRequest, params: SamplingParams, notes: list[str], *, truncate: bool
) -> PreparedChat:
    """Prepare as `prepare_chat`; with `truncate`, drop as few of the oldest turns as needed to fit, if the last turn does."""
    if not truncate:
        return await prepare_chat(loaded, request, params, fits=False)
    if whole := await _fitting(loaded, request, params):
        return whole
    # Without the oldest turn, the two oldest, and so on. A turn begins with the user; system messages at the beginning stay.
    messages, best = request.messages, None
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    turns = [i for i, message in enumerate(messages) if message.role == "user" and i > start]
    low, high = 0, len(turns)
    while low < high:  # find the first that fits: each is shorter than the one before
        middle = (low + high) // 2
        shorter = dataclasses.replace(request, messages=[*messages[:start], *messages[turns[middle] :]])
        if tried := await _fitting(loaded, shorter, params):
            high, best = middle, tried
        else:
            low = middle + 1
    if best is None:
        return await prepare_chat(loaded, request, params, fits=False)
    notes.append(f"input: the oldest {turns[low] - start} messages are left out, for truncation is auto and they do not fit")
    return best


async def _fitting(loaded: Loaded, request: ChatRequest, params: SamplingParams) -> PreparedChat | None:
    """Return the prepared chat; None if it does not fit."""
    try:
        chat = await prepare_chat(loaded, request, params)
    except ContextLengthExceeded:
        return None
    return chat if len(chat.jobs[0][0]) < loaded.engine.info.context else None
