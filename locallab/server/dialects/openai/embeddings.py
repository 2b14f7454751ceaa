"""Embeddings: /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.pool import Pool
from locallab.server.dialects.answer_fields import ModelName
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import check_ranges, read
from locallab.server.inference.embedding import NAME, Dimensions, Format, check_dimensions, first_components, json_rows, vectors
from locallab.server.inference.lease import lease
from locallab.server.inference.prompt import PROMPTS, prompts
from locallab.server.reply import reply
from locallab.settings import ServerSettings


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    input: Annotated[Any, Meta(description="a text, texts, token ids, or lists of them", extra_json_schema=PROMPTS)]
    model: Annotated[str | None, Meta(description=NAME)] = None
    encoding_format: Annotated[Format | None, Meta(description="base64: little-endian 32-bit floats")] = None
    dimensions: Dimensions = None


class Vector(msgspec.Struct):
    object: Literal["embedding"]
    index: Annotated[int, Meta(description="index of its text in the input")]
    embedding: Annotated[list[float] | str, Meta(description="normalized to length 1")]


class InputTokens(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class VectorList(msgspec.Struct):
    """The answer of /v1/embeddings."""

    object: Literal["list"]
    data: list[Vector]
    model: ModelName
    usage: InputTokens


class Embeddings:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint(
                "/v1/embeddings",
                self.embeddings,
                tag="openai",
                method="POST",
                body=EmbeddingsBody,
                answer=VectorList,
                errors=(404, 503),
            ),
        ]

    async def embeddings(self, request: Request) -> Response:
        """Embed texts.

        Vectors are normalized to length 1. Token ids must be those of the model itself.
        """
        body = await read(request, EmbeddingsBody)
        check_ranges(body)
        texts = prompts(body.input, "input")
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models, kind="embedding")
        check_dimensions(loaded, body.dimensions)
        computed = await vectors(loaded, texts, request)
        rows = await json_rows(first_components(computed.rows, body.dimensions), body.encoding_format or "float")
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        usage = {"prompt_tokens": computed.tokens, "total_tokens": computed.tokens}
        return reply({"object": "list", "data": data, "model": body.model or loaded.spec.id, "usage": usage})
