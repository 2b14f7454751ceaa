"""Reranking of documents: /v1/rerank, in the shape of Jina and Cohere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.errors import InvalidField
from locallab.pool import Pool
from locallab.server.dialects.answer_fields import ModelName
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import check_ranges, read
from locallab.server.inference.embedding import scores
from locallab.server.inference.lease import lease
from locallab.server.reply import reply
from locallab.settings import ServerSettings


class Document(msgspec.Struct):
    text: str


class RerankBody(msgspec.Struct, kw_only=True):
    query: Annotated[str, Meta(description="the question that the documents should answer")]
    documents: Annotated[
        list[str | Document], Meta(description="texts, or objects with a text", extra_json_schema={"minItems": 1})
    ]
    model: Annotated[str | None, Meta(description="name of the model; an unknown name is a loaded reranker")] = None
    top_n: Annotated[int | None, Meta(description="number of best documents to return; default: all")] = None
    return_documents: Annotated[bool | None, Meta(description="include the documents in the answer")] = None


class Ranked(msgspec.Struct):
    index: Annotated[int, Meta(description="index of the document in the request")]
    relevance_score: Annotated[float, Meta(ge=0, le=1, description="relevance from 0 to 1")]
    document: Document | UnsetType = UNSET


class RankedTokens(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Ranking(msgspec.Struct):
    """The documents, best first."""

    object: Literal["list"]
    model: ModelName
    results: list[Ranked]
    data: Annotated[list[Ranked], Meta(description="the same, where some clients look for them")]
    usage: RankedTokens


class Rerank:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        common: dict[str, Any] = {"tag": "openai", "method": "POST", "body": RerankBody, "answer": Ranking}
        return [Endpoint(path, self.rerank, errors=(404, 503), **common) for path in ("/v1/rerank", "/v2/rerank")]

    async def rerank(self, request: Request) -> Response:
        """Rank documents by their relevance to a question."""
        body = await read(request, RerankBody)
        check_ranges(body)
        texts = [each if isinstance(each, str) else each.text for each in body.documents]
        if not texts:
            raise InvalidField("documents", "must have at least one document")
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models, kind="reranker")
        computed = await scores(loaded, body.query, texts, request)
        relevance = computed.rows[:, 0].tolist()
        best = sorted(range(len(texts)), key=lambda index: -relevance[index])[: body.top_n]
        results = [Ranked(index, relevance[index]) for index in best]
        if body.return_documents:
            results = [msgspec.structs.replace(each, document=Document(texts[each.index])) for each in results]
        usage = RankedTokens(computed.tokens, computed.tokens)
        return reply(Ranking("list", body.model or loaded.spec.id, results, results, usage))
