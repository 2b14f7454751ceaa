"""Separation of users' text from a model's markup: a control token written in a message is text and must not end a turn."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence

from locallab.chat.messages import Message
from locallab.media.marker import parts

SEAM = "\ufdd0"
"""Marks a cut inside a control token's text. Unicode reserves this noncharacter for a program's internal use."""


def markup(control: Collection[str]) -> re.Pattern[str] | None:
    """Compile a pattern of the control tokens' texts; None if there are none."""
    texts = sorted((text for text in control if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def guarded(messages: Sequence[Message], control: re.Pattern[str] | None) -> list[Message]:
    """Return the messages with a seam after the first character of every control token in them; markers stay whole."""
    safe = []
    for message in messages:
        content, reasoning = _cut(message.content, control), _cut(message.reasoning, control)
        calls = tuple(dataclasses.replace(call, arguments=_cut(call.arguments, control)) for call in message.tool_calls)
        if (content, reasoning, calls) != (message.content, message.reasoning, message.tool_calls):
            message = dataclasses.replace(message, content=content, reasoning=reasoning, tool_calls=calls)
        safe.append(message)
    return safe


def pieces(prompt: str) -> list[str]:
    """Split a rendered prompt at its seams. Tokenize the parts one by one, so that no token spans a seam."""
    return [piece for piece in prompt.split(SEAM) if piece]


def _cut(text: str, control: re.Pattern[str] | None) -> str:
    if control is None:
        return text.replace(SEAM, "")
    cut = [part if index % 2 else _seamed(part, control) for index, part in enumerate(parts(text))]
    return "".join(cut)


def _seamed(text: str, control: re.Pattern[str]) -> str:
    return control.sub(lambda match: match[0][0] + SEAM + match[0][1:], text.replace(SEAM, ""))
