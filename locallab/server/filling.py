"""Prompts whose answer belongs into a gap of a text, for models that have tokens for that."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence

from locallab.chat.fim import infill
from locallab.errors import InvalidField
from locallab.pool import Loaded

File = tuple[str, str]
"""A name and a text."""


async def gap_prompt(
    loaded: Loaded, prefix: str, suffix: str, files: Sequence[File] = (), begun: str = "", field: str = "suffix"
) -> list[int]:
    """What stands around a gap, behind other `files`, and how its filling is `begun`: all of it text, whatever markup it has.

    Raises InvalidField, naming `field`, for a model that cannot.
    """
    engine, fim = loaded.engine, loaded.engine.info.fim
    if fim is None:
        raise InvalidField(field, f"model {loaded.spec.id!r} has no tokens to fill in text with; ask one made for code")
    tokenize = functools.partial(engine.tokenize, add_special=False, parse_special=False)

    def tokens() -> list[int]:
        return infill(fim, tokenize, prefix, suffix, files) + (tokenize(begun) if begun else [])

    return await asyncio.to_thread(tokens)
