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
from locallab.chat.turn import ChatRequest
from locallab.engine import EmbeddingEngine
from locallab.engine.request import Usage
from locallab.errors import ContextLengthExceeded, InvalidField
from locallab.pool import Loaded
from locallab.server.inference.aside import ITEM, Stopped, aside
from locallab.server.inference.generation import unless_gone
from locallab.server.inference.prompt import Prompt, rendered

Rows = npt.NDArray[np.float32]
Format = Literal["float", "base64"]

PAUSE = 64
"""Vectors written as JSON in one go, before the event loop may do something else."""

_PLACES = re.compile(r"\{(query|document)\}")

Dimensions = Annotated[int | None, Meta(description="number of each vector's first components to return; default: all")]
NAME = "name of the model; an unknown name is a loaded one that makes embeddings"


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """A row for each text, the number of tokens of all texts, and how many of these were `cut`."""

    rows: Rows
    tokens: int
    cut: int = 0


async def vectors(loaded: Loaded, texts: Sequence[Prompt], request: Request, *, truncate: bool = False) -> EmbeddingResult:
    """Return the vector of each text, or of token ids and texts in a row, which are taken as they are. `truncate` cuts texts
    that are too long, which else are refused.

    Raises ClientGone when the client leaves first, and what `EmbeddingEngine.embed` raises.
    """
    engine = embedder(loaded)

    def tokens(stopped: Stopped) -> list[list[int]]:
        options: dict[str, Any] = {"add_special": True, "parse_special": True, "fits": not truncate, "stopped": stopped}
        return [engine.tokenize(text, **options) if isinstance(text, str) else _row(engine, text, stopped) for text in texts]

    prompts = await aside(sum(map(len, texts)) + ITEM * len(texts), tokens)
    room = engine.info.context
    if truncate and any(len(prompt) > room for prompt in prompts):
        # The token that closes a text, if there is one, stays.
        closing = engine.closing
        prompts = [p if len(p) <= room else p[: room - len(closing)] + closing for p in prompts]
    return await _compute(loaded, prompts, request)


Pair = tuple[str, str]
"""A question and a document."""


async def scores(
    loaded: Loaded, pairs: Sequence[Pair], request: Request, *, most: int | None = None, question: str = "query"
) -> EmbeddingResult:
    """Return how well the document of each pair answers its question, from 0 to 1.

    A document is cut to `most` tokens, and to what the context has room for besides the question; `cut` counts the latter.
    Raises InvalidField, naming the field `question`, for one that leaves no room, and as `vectors`.
    """
    engine = embedder(loaded)

    def tokens(stopped: Stopped) -> list[tuple[list[int], bool]]:
        found = []
        for query, document in pairs:
            if stopped():
                break
            found.append(_pair(loaded, query, document, most or engine.info.context))
        return found

    length = sum(len(query) + len(document) + ITEM for query, document in pairs)
    try:
        found = await aside(length, tokens)
    except ContextLengthExceeded as error:
        raise InvalidField(question, f"leaves no room for a document: {error}") from None
    computed = await _compute(loaded, [prompt for prompt, _ in found], request)
    return dataclasses.replace(computed, cut=sum(was_cut for _, was_cut in found))


def cut_notes(result: EmbeddingResult, context: int) -> list[str]:
    """Return a note about the documents that were cut, if there are any."""
    return (
        [f"documents: {result.cut} of {len(result.rows)} were cut to fit the context of {context} tokens"] if result.cut else []
    )


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


INT16 = 32760
"""The largest component of a vector that llama.cpp scales by it."""


def scaled(rows: Rows, norm: int | None) -> Rows:
    """Return vectors of length 1 scaled by another norm, as llama.cpp's `embd_normalize` numbers them. Raises InvalidField."""
    if norm in (None, 2):
        return rows
    if norm < 0:
        raise InvalidField("embd_normalize", "must be at least 0: vectors are always normalized")
    sizes = np.abs(rows).max(1) / INT16 if norm == 0 else np.linalg.norm(rows, norm, axis=1)
    return np.asarray(rows / np.where(sizes == 0, 1, sizes)[:, None], np.float32)


async def conversation_tokens(loaded: Loaded, messages: Sequence[Message], notes: list[str]) -> list[int]:
    """Return the tokens of a conversation as one text: through the model's chat template or, with a note, without one line by
    line. Markup in messages stays text. Raises InvalidField."""
    engine, said = embedder(loaded), guarded(messages, loaded.markup)
    if loaded.template.source:
        request = ChatRequest(messages=said)
        text = await rendered(loaded.template, request, loaded.template.render, said, add_generation_prompt=False)
    else:
        notes.append("messages: the model has no chat template; their texts are embedded, each on a line of its own")
        text = "\n".join(message.content for message in said)

    def tokens(stopped: Stopped) -> list[int]:
        options: dict[str, Any] = {"add_special": False, "parse_special": True, "fits": True, "stopped": stopped}
        return [token for piece in pieces(text) for token in engine.tokenize(piece, **options)]

    found, around = await aside(len(text), tokens), engine.tokenize("", add_special=True, parse_special=False)
    opening = around[: len(around) - len(engine.closing)]
    return [*(opening if found[: len(opening)] != opening else []), *found, *engine.closing]


async def json_rows(rows: Rows, form: Format) -> list[Any]:
    """Return the vectors ready for JSON."""
    if form == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
    found = []
    for start in range(0, len(rows), PAUSE):
        found += [msgspec.Raw(msgspec.json.encode(row)) for row in rows[start : start + PAUSE].tolist()]
        await asyncio.sleep(0)
    return found


def _row(engine: EmbeddingEngine, parts: Sequence[int | str], stopped: Stopped) -> list[int]:
    tokens: list[int] = []
    for part in parts:
        if isinstance(part, str):
            tokens += engine.tokenize(part, add_special=False, parse_special=True, fits=True, stopped=stopped)
        else:
            tokens.append(part)
    return tokens


async def _compute(loaded: Loaded, prompts: list[list[int]], request: Request) -> EmbeddingResult:
    def spent(tokens: int) -> None:
        request.state.spend(loaded.spec.id, Usage(tokens, 0, 0))

    async def wait() -> Rows:
        return await asyncio.wrap_future(embedder(loaded).embed(prompts, request.state.caller, spent))

    return EmbeddingResult(await unless_gone(wait(), request.receive), sum(map(len, prompts)))


def _pair(loaded: Loaded, query: str, document: str, most: int) -> tuple[list[int], bool]:
    """Return the tokens of a pair, and whether its document was cut for the context: the model's template, filled with texts in
    which markup stays text, or the plain pair. Raises ContextLengthExceeded for the question."""
    engine = embedder(loaded)
    room = engine.info.context
    if engine.pair_template is None:
        return engine.pair(query, document, most)
    filled = _filled(loaded, engine.pair_template, query, document)
    if len(filled) <= room and len(document.encode()) <= most:
        return filled, False
    words = engine.tokenize(document, add_special=False, parse_special=False)
    kept = min(len(words), most)
    while True:
        text = document if kept == len(words) else engine.detokenize(words[:kept]).rstrip("\ufffd")
        filled = _filled(loaded, engine.pair_template, query, text)
        if len(filled) <= room:
            return filled, kept < min(len(words), most)
        if kept == 0:
            raise ContextLengthExceeded(len(filled), room)
        kept = max(0, kept - (len(filled) - room))


def _filled(loaded: Loaded, template: str, query: str, document: str) -> list[int]:
    """Return the tokens of a template with the two texts."""
    engine, texts = loaded.engine, {"query": query, "document": document}
    safe = {name: guarded([Message("user", text)], loaded.markup)[0].content for name, text in texts.items()}
    prompt = "".join(safe[part] if index % 2 else part for index, part in enumerate(_PLACES.split(template)))
    return [token for piece in pieces(prompt) for token in engine.tokenize(piece, add_special=False, parse_special=True)]
