"""Embeddings of texts, and scores of documents."""

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
from starlette.requests import Request

from locallab.chat import Message
from locallab.chat.control_tokens import guarded, pieces
from locallab.engine import EmbeddingEngine
from locallab.errors import InvalidField
from locallab.pool import Loaded
from locallab.server.inference.aside import ITEM, Stopped, aside
from locallab.server.inference.generation import unless_gone

Rows = npt.NDArray[np.float32]
Format = Literal["float", "base64"]

PAUSE = 64
"""Vectors written as JSON in one go, before the event loop may do something else."""

_PLACES = re.compile(r"\{(query|document)\}")

Dimensions = Annotated[int | None, Meta(description="number of each vector's first components to return; default: all")]
NAME = "name of the model; an unknown name is a loaded one that makes embeddings"


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """A row for each text, and the number of tokens of all texts."""

    rows: Rows
    tokens: int


async def vectors(
    loaded: Loaded, texts: Sequence[str | list[int]], request: Request, *, truncate: bool = False
) -> EmbeddingResult:
    """Return the vector of each text; a list is token ids. `truncate` cuts texts that are too long, which else are refused.

    Raises ClientGone when the client leaves first, and what `EmbeddingEngine.embed` raises.
    """
    engine = embedder(loaded)

    def tokens(stopped: Stopped) -> list[list[int]]:
        options: dict[str, Any] = {"add_special": True, "parse_special": True, "fits": not truncate, "stopped": stopped}
        return [engine.tokenize(text, **options) if isinstance(text, str) else text for text in texts]

    prompts = await aside(sum(map(len, texts)) + ITEM * len(texts), tokens)
    room = engine.info.context
    if truncate and any(len(prompt) > room for prompt in prompts):
        # The token that closes a text, if there is one, stays.
        closing = engine.tokenize("", add_special=True, parse_special=False)[int(engine.info.add_bos) :]
        prompts = [p if len(p) <= room else p[: room - len(closing)] + closing for p in prompts]
    return await _compute(engine, prompts, request)


async def scores(loaded: Loaded, query: str, documents: Sequence[str], request: Request) -> EmbeddingResult:
    """Return how well each document answers the query, from 0 to 1. Raises as `vectors`."""
    engine = embedder(loaded)
    length = (len(query) + ITEM) * len(documents) + sum(map(len, documents))
    prompts = await aside(length, lambda stopped: _pairs(loaded, query, documents, stopped))
    return await _compute(engine, prompts, request)


def embedder(loaded: Loaded) -> EmbeddingEngine:
    """Return the engine of a model that was leased for its vectors or scores."""
    assert isinstance(loaded.engine, EmbeddingEngine)
    return loaded.engine


def check_dimensions(loaded: Loaded, dimensions: int | None) -> None:
    """Raise InvalidField for more dimensions than the model's vectors have."""
    most = loaded.engine.info.dimensions
    if dimensions is not None and dimensions > most:
        raise InvalidField("dimensions", f"must be at most {most}, which this model's vectors have, got {dimensions}")


def first_components(rows: Rows, dimensions: int | None) -> Rows:
    """Return the first `dimensions` components of each vector, normalized to length 1."""
    if dimensions in (None, rows.shape[1]):
        return rows
    short = rows[:, :dimensions]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.where(lengths == 0, 1, lengths), np.float32)


async def json_rows(rows: Rows, form: Format) -> list[Any]:
    """Return the vectors ready for JSON."""
    if form == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
    found = []
    for start in range(0, len(rows), PAUSE):
        found += [msgspec.Raw(msgspec.json.encode(row)) for row in rows[start : start + PAUSE].tolist()]
        await asyncio.sleep(0)
    return found


async def _compute(engine: EmbeddingEngine, prompts: list[list[int]], request: Request) -> EmbeddingResult:
    async def wait() -> Rows:
        return await asyncio.wrap_future(engine.embed(prompts, request.state.caller))

    return EmbeddingResult(await unless_gone(wait(), request.receive), sum(map(len, prompts)))


def _pairs(loaded: Loaded, query: str, documents: Sequence[str], stopped: Stopped) -> list[list[int]]:
    """Return the tokens of each pair: the model's template, filled with texts in which markup stays text, or the plain pair."""
    engine = embedder(loaded)
    template = engine.pair_template
    engine.tokenize(query, add_special=True, parse_special=False, fits=True, stopped=stopped)  # rather than once a document
    found: list[list[int]] = []
    for document in documents:
        if stopped():
            break
        if template is None:
            found.append(engine.pair(query, document))
            continue
        texts = {"query": query, "document": document}
        safe = {name: guarded([Message("user", text)], loaded.markup)[0].content for name, text in texts.items()}
        prompt = "".join(safe[part] if index % 2 else part for index, part in enumerate(_PLACES.split(template)))
        found.append(
            [token for piece in pieces(prompt) for token in engine.tokenize(piece, add_special=False, parse_special=True)]
        )
    return found
