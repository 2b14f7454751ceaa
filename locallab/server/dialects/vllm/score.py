"""Scores of pairs of texts, as vLLM's server gives them: /score."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.errors import InvalidField
from locallab.pool import Loaded, Pool
from locallab.server.dialects.answer_fields import Created, ModelName
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import read
from locallab.server.inference.embedding import EmbeddingResult, Pair, cut_notes, scores, vectors
from locallab.server.inference.lease import lease
from locallab.server.reply import noted, reply
from locallab.settings import ServerSettings

NAMES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""The names that the two sides of the pairs have had."""

Texts = Annotated[str | list[str] | None, Meta(description="another name of it")]


class ScoreBody(msgspec.Struct, kw_only=True):
    text_1: Annotated[str | list[str] | None, Meta(description="a text for each of text_2, or one for all")] = None
    text_2: Annotated[str | list[str] | None, Meta(description="the texts to compare with: the documents")] = None
    queries: Texts = None
    documents: Texts = None
    items: Texts = None
    data_1: Texts = None
    data_2: Texts = None
    model: Annotated[str | None, Meta(description="name of the model; an unknown name is a loaded reranker")] = None

    def pairs(self) -> tuple[str, list[Pair]]:
        """Return the name of the first side, and the pairs. Raises InvalidField."""
        one, two = next((pair for pair in NAMES if all(getattr(self, name) is not None for name in pair)), NAMES[0])
        first, second = (self._side(name) for name in (one, two))
        if len(first) not in (1, len(second)):
            raise InvalidField(one, f"must have one text, or as many as {two}, which has {len(second)}; has {len(first)}")
        return one, list(zip(first * (len(second) // len(first)), second, strict=True))

    def _side(self, name: str) -> list[str]:
        value = getattr(self, name)
        if not value and value != "":
            raise InvalidField(name, "is missing" if value is None else "must have at least one text")
        return [value] if isinstance(value, str) else value


class PairScore(msgspec.Struct):
    index: int
    object: Literal["score"]
    score: Annotated[float, Meta(description="relevance from 0 to 1; the cosine with a model that makes embeddings")]


class ScoreUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int


class Scores(msgspec.Struct):
    """The scores of the pairs, in their order."""

    id: str
    object: Literal["list"]
    created: Created
    model: ModelName
    data: list[PairScore]
    usage: ScoreUsage


class Score:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        common: dict[str, Any] = {"tag": "vllm", "method": "POST", "body": ScoreBody, "answer": Scores, "errors": (404, 503)}
        return [Endpoint(path, self.score, **common) for path in ("/score", "/v1/score")]

    async def score(self, request: Request) -> ASGIApp:
        """Tell how well texts match: with a reranker, or by the cosine of their vectors."""
        body = await read(request, ScoreBody)
        name, pairs = body.pairs()
        strict = self._settings.strict_models
        loaded = await lease(request, self._pool, body.model, strict=strict, kind="reranker", also="embedding")
        compute = _cosines if loaded.engine.info.kind == "embedding" else scores
        computed = await compute(loaded, pairs, request, question=name)
        found = [PairScore(index, "score", score) for index, score in enumerate(computed.rows[:, 0].tolist())]
        usage, model = ScoreUsage(computed.tokens, computed.tokens, 0), body.model or loaded.spec.id
        answer = Scores(f"score-{secrets.token_hex(12)}", "list", int(time.time()), model, found, usage)
        return noted(reply(answer), cut_notes(computed, loaded.engine.info.context))


async def _cosines(loaded: Loaded, pairs: list[Pair], request: Request, *, question: str) -> EmbeddingResult:
    """Return the cosines of the pairs' vectors; each text is computed once. Raises as `vectors`."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    computed, at = await vectors(loaded, texts, request), {text: index for index, text in enumerate(texts)}
    one, two = (computed.rows[[at[pair[side]] for pair in pairs]] for side in (0, 1))
    return EmbeddingResult(np.sum(one * two, axis=1, keepdims=True), computed.tokens)
