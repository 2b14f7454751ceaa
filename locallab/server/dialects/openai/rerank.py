"""Reranking of documents: /v1/rerank, in the shape of Jina and Cohere, and in that of Text Embeddings Inference (TEI)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.errors import InvalidField
from locallab.pool import Pool
from locallab.server.dialects.answer_fields import ModelName
from locallab.server.dialects.openai.fields import RERANK
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import first, read
from locallab.server.fields.table import Others
from locallab.server.inference.embedding import cut_notes, scores
from locallab.server.inference.lease import lease
from locallab.server.reply import noted, reply
from locallab.settings import ServerSettings

PATHS = ("/v1/rerank", "/v2/rerank", "/v1/reranking")


class Document(msgspec.Struct):
    text: str


class RerankBody(msgspec.Struct, kw_only=True):
    query: Annotated[str, Meta(description="the question that the documents should answer")]
    documents: Annotated[
        list[str | Document] | None, Meta(description="texts, or objects with a text; what does not fit the context is cut off")
    ] = None
    texts: Annotated[list[str] | None, Meta(description="the documents, for an answer in TEI's shape")] = None
    model: Annotated[str | None, Meta(description="name of the model; an unknown name is a loaded reranker")] = None
    top_n: Annotated[int | None, Meta(description="number of best documents to return; default: all")] = None
    return_documents: Annotated[bool | None, Meta(description="include the documents in the answer")] = None
    return_text: Annotated[bool | None, Meta(description="with texts: include them in the answer")] = None
    max_tokens_per_doc: Annotated[int | None, Meta(description="tokens of each document that are read; default: all")] = None

    OTHERS: ClassVar[Others] = RERANK

    def given(self) -> list[str]:
        """Return the documents' texts. Raises InvalidField."""
        if self.documents is not None and self.texts is not None:
            raise InvalidField("texts", "cannot be combined with documents")
        found = [each if isinstance(each, str) else each.text for each in first(self.documents, self.texts, [])]
        if not found:
            raise InvalidField("documents", "must have at least one document")
        return found


class Ranked(msgspec.Struct):
    index: Annotated[int, Meta(description="index of the document in the request")]
    relevance_score: Annotated[float, Meta(ge=0, le=1, description="relevance from 0 to 1")]
    document: Document | UnsetType = UNSET


class Scored(msgspec.Struct):
    """A document of an answer in TEI's shape."""

    index: Annotated[int, Meta(description="index of the text in the request")]
    score: Annotated[float, Meta(ge=0, le=1, description="relevance from 0 to 1")]
    text: str | UnsetType = UNSET


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
        common: dict[str, Any] = {"tag": "openai", "method": "POST", "body": RerankBody, "answer": Ranking | list[Scored]}
        return [Endpoint(path, self.rerank, errors=(404, 503), **common) for path in PATHS]

    async def rerank(self, request: Request) -> ASGIApp:
        """Rank documents by their relevance to a question.

        What does not fit the context of a document is cut off; the header x-locallab-notes says of how many.
        """
        body = await read(request, RerankBody)
        texts = body.given()
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models, kind="reranker")
        pairs = [(body.query, text) for text in texts]
        computed = await scores(loaded, pairs, request, most=body.max_tokens_per_doc)
        notes = cut_notes(computed, loaded.engine.info.context)
        relevance = computed.rows[:, 0].tolist()
        best = sorted(range(len(texts)), key=lambda index: -relevance[index])[: body.top_n]
        if body.texts is not None:
            scored = [Scored(index, relevance[index], texts[index] if body.return_text else UNSET) for index in best]
            return noted(reply(scored), notes)
        results = [Ranked(index, relevance[index]) for index in best]
        if body.return_documents:
            results = [msgspec.structs.replace(each, document=Document(texts[each.index])) for each in results]
        usage = RankedTokens(computed.tokens, computed.tokens)
        return noted(reply(Ranking("list", body.model or loaded.spec.id, results, results, usage)), notes)
