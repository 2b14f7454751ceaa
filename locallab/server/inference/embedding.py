"""From texts to vectors or scores: tokenises, asks the engine, waits for as long as the client does."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta
from starlette.types import Receive

from locallab.chat import Message
from locallab.chat.control_tokens import guarded, pieces
from locallab.engine import Embedder
from locallab.errors import InvalidField
from locallab.pool import Loaded
from locallab.server.inference.generation import unless_gone
from locallab.server.inference.prompt import LONG

Rows = npt.NDArray[np.float32]
Format = Literal["float", "base64"]

PAUSE = 64
"""Vectors that are written as JSON in one go, before the event loop may do something else."""

_PLACES = re.compile(r"\{(query|document)\}")


@dataclasses.dataclass(frozen=True, slots=True)
class Computed:
    """A row for each text, and how many tokens they had together."""

    rows: Rows
    tokens: int


async def vectors(loaded: Loaded, texts: Sequence[str | list[int]], receive: Receive, *, truncate: bool = False) -> Computed:
    """The vector of each text; token ids are taken as they are. `truncate` cuts what is too long, which else is refused.

    Raises ClientGone when the client leaves first, and what `Embedder.embed` raises.
    """
    engine = embedder(loaded)
    long = sum(len(text) for text in texts if isinstance(text, str)) >= LONG
    prompts = await asyncio.to_thread(_tokens, engine, texts) if long else _tokens(engine, texts)
    return await _compute(engine, [_cut(engine, prompt) for prompt in prompts] if truncate else prompts, receive)


async def scores(loaded: Loaded, query: str, documents: Sequence[str], receive: Receive) -> Computed:
    """How well each document answers the query, from 0 to 1. Raises as `vectors`."""
    engine = embedder(loaded)
    long = len(query) * len(documents) + sum(map(len, documents)) >= LONG
    prompts = await asyncio.to_thread(_pairs, loaded, query, documents) if long else _pairs(loaded, query, documents)
    return await _compute(engine, prompts, receive)


def embedder(loaded: Loaded) -> Embedder:
    """The engine of a model that has been leased as one that makes vectors or scores."""
    assert isinstance(loaded.engine, Embedder)
    return loaded.engine


def check_dimensions(loaded: Loaded, dimensions: int | None) -> None:
    """Raises InvalidField for more than the model's vectors have."""
    most = loaded.engine.info.dimensions
    if dimensions is not None and dimensions > most:
        raise InvalidField("dimensions", f"must be at most {most}, which this model's vectors have, got {dimensions}")


def shortened(rows: Rows, dimensions: int | None) -> Rows:
    """The first `dimensions` of each vector, made as long as before."""
    if dimensions in (None, rows.shape[1]):
        return rows
    short = rows[:, :dimensions]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.where(lengths == 0, 1, lengths), np.float32)


async def written(rows: Rows, form: Format) -> list[Any]:
    """The vectors as they go into JSON."""
    if form == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
    found = []
    for start in range(0, len(rows), PAUSE):
        found += [msgspec.Raw(msgspec.json.encode(row)) for row in rows[start : start + PAUSE].tolist()]
        await asyncio.sleep(0)
    return found


async def _compute(engine: Embedder, prompts: list[list[int]], receive: Receive) -> Computed:
    async def wait() -> Rows:
        return await asyncio.wrap_future(engine.embed(prompts))

    return Computed(await unless_gone(wait(), receive), sum(map(len, prompts)))


def _tokens(engine: Embedder, texts: Sequence[str | list[int]]) -> list[list[int]]:
    return [engine.tokenize(t, add_special=True, parse_special=True) if isinstance(t, str) else t for t in texts]


def _cut(engine: Embedder, prompt: list[int]) -> list[int]:
    """As much of the prompt as the context holds, with the token that closes a text if there is one."""
    room = engine.info.context
    if len(prompt) <= room:
        return prompt
    closing = engine.tokenize("", add_special=True, parse_special=False)[int(engine.info.add_bos) :]
    return prompt[: room - len(closing)] + closing


def _pairs(loaded: Loaded, query: str, documents: Sequence[str]) -> list[list[int]]:
    """What the model reads of each pair: its template, in which what people wrote stays text, or the plain pair."""
    engine = embedder(loaded)
    template = engine.pair_template
    if template is None:
        return [engine.pair(query, document) for document in documents]
    return [_filled(loaded, template, {"query": query, "document": document}) for document in documents]


def _filled(loaded: Loaded, template: str, texts: dict[str, str]) -> list[int]:
    safe = {name: guarded([Message("user", text)], loaded.markup)[0].content for name, text in texts.items()}
    prompt = _PLACES.sub(lambda place: safe[place[1]], template)
    engine, tokens = loaded.engine, list[int]()
    for piece in pieces(prompt):
        tokens += engine.tokenize(piece, add_special=False, parse_special=True)
    return tokens


Dimensions = Annotated[int | None, Meta(description="so many of each vector's numbers, the first ones; default: all of them")]
NAME = "the model to ask; an unknown name is a loaded one that makes vectors"
