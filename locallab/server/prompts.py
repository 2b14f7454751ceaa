"""Prompts as the engine takes them: text or messages into token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from locallab.engine import Engine
from locallab.errors import InvalidField
from locallab.pool import Loaded

PROMPTS = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}},
    ]
}
"""What `prompts` takes, as a JSON schema."""

LONG = 16_384
"""Characters from which tokenizing would hold up the event loop, and goes to a thread."""


def prompts(raw: Any, field: str = "prompt") -> list[str | list[int]]:
    """What a request's `field` holds: one text, texts, one list of token ids, or several such lists. Raises InvalidField."""
    if raw is None:
        raise InvalidField(field, "is missing")
    if isinstance(raw, str):
        return [raw]
    if isinstance(raw, list) and raw:
        if all(isinstance(part, str) for part in raw):
            return raw
        if _tokens(raw):
            return [raw]
        if all(_tokens(part) for part in raw):
            return raw
    raise InvalidField(field, "expected a string, a list of strings, a list of token ids, or a list of such lists, none empty")


def _tokens(raw: Any) -> bool:
    return isinstance(raw, list) and bool(raw) and all(type(token) is int for token in raw)


async def text_prompt(loaded: Loaded, text: str) -> list[int]:
    """The text as it stands; markup in it counts, and the model's opening token comes first unless the text has it already."""
    return await tokenized(loaded, [text])


async def tokenized(loaded: Loaded, pieces: Sequence[str]) -> list[int]:
    """As `text_prompt`, for a text in pieces: no token spans two of them."""
    if sum(map(len, pieces)) < LONG:
        return tokenize(loaded.engine, pieces)
    return await asyncio.to_thread(tokenize, loaded.engine, pieces)


def tokenize(engine: Engine, pieces: Sequence[str]) -> list[int]:
    """As `tokenized`; blocks."""
    head, *rest = pieces or [""]
    bare = bool(engine.info.bos) and head.startswith(engine.info.bos)
    tokens = engine.tokenize(head, add_special=not bare, parse_special=True)
    for piece in rest:
        tokens += engine.tokenize(piece, add_special=False, parse_special=True)
    return tokens
