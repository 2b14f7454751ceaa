"""Keeps what people write apart from a model's markup: a control token in a message is text, and must not end its turn."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence

from locallab.chat.messages import Message

SEAM = "\ufdd0"
"""Marks where a control token's text was cut in two. Unicode keeps this code point free for a program's own use."""


def markup(control: Collection[str]) -> re.Pattern[str] | None:
    """Finds control tokens by their texts; None if there are none."""
    texts = sorted((text for text in control if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def guarded(messages: Sequence[Message], found: re.Pattern[str] | None) -> list[Message]:
    """The messages with a seam after the first character of every control token in them."""
    return [_guarded(message, found) for message in messages]


def pieces(prompt: str) -> list[str]:
    """The parts of a rendered prompt to be tokenised one by one, so that no token spans a seam."""
    return [piece for piece in prompt.split(SEAM) if piece]


def _guarded(message: Message, found: re.Pattern[str] | None) -> Message:
    content, reasoning = _cut(message.content, found), _cut(message.reasoning, found)
    calls = tuple(dataclasses.replace(call, arguments=_cut(call.arguments, found)) for call in message.tool_calls)
    if (content, reasoning, calls) == (message.content, message.reasoning, message.tool_calls):
        return message
    return dataclasses.replace(message, content=content, reasoning=reasoning, tool_calls=calls)


def _cut(text: str, found: re.Pattern[str] | None) -> str:
    text = text.replace(SEAM, "")
    return found.sub(lambda match: match[0][0] + SEAM + match[0][1:], text) if found else text
