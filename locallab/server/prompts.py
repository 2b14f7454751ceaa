"""Prompts as the engine takes them: text or messages into token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from locallab.chat import Message
from locallab.pool import Loaded

LONG = 16_384
"""Characters from which tokenizing would hold up the event loop, and goes to a thread."""


async def chat_prompt(loaded: Loaded, messages: Sequence[Message]) -> list[int]:
    """The conversation, through the model's own template, up to where the assistant speaks."""
    return await text_prompt(loaded, loaded.template.render(messages))


async def text_prompt(loaded: Loaded, text: str) -> list[int]:
    """The text as it stands; markup in it counts, and the model's opening token comes first unless the text has it already."""
    bos = loaded.engine.info.bos
    bare = bool(bos) and text.startswith(bos)
    if len(text) < LONG:
        return loaded.engine.tokenize(text, add_special=not bare, parse_special=True)
    return await asyncio.to_thread(loaded.engine.tokenize, text, add_special=not bare, parse_special=True)
