"""Vectors of texts: OpenAI's /v1/embeddings, and Ollama's /api/embed and /api/embeddings."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.pool import Loaded, Pool
from locallab.server.answers import ModelName
from locallab.server.durations import seconds
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import check_ranges, read
from locallab.server.inference.embedding import NAME, Dimensions, Format, check_dimensions, shortened, vectors, written
from locallab.server.inference.lease import afterwards, lease
from locallab.server.inference.prompt import PROMPTS, prompts
from locallab.server.ollamacards import untagged
from locallab.server.reply import reply
from locallab.settings import ServerSettings


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    input: Annotated[Any, Meta(description="a text, texts, token ids, or lists of them", extra_json_schema=PROMPTS)]
    model: Annotated[str | None, Meta(description=NAME)] = None
    encoding_format: Annotated[Format | None, Meta(description="base64: of the numbers as little-endian floats")] = None
    dimensions: Dimensions = None


class Vector(msgspec.Struct):
    object: Literal["embedding"]
    index: Annotated[int, Meta(description="the place of its text in the input")]
    embedding: Annotated[list[float] | str, Meta(description="of length 1")]


class InputTokens(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class VectorList(msgspec.Struct):
    """The answer of /v1/embeddings."""

    object: Literal["list"]
    data: list[Vector]
    model: ModelName
    usage: InputTokens


class OllamaEmbedBody(msgspec.Struct, kw_only=True):
    input: Annotated[str | list[str] | None, Meta(description="a text, or texts; without any the model is only loaded")] = None
    model: Annotated[str | None, Meta(description=NAME)] = None
    truncate: Annotated[bool | None, Meta(description="false: refuse a text that is too long, instead of cutting it")] = None
    dimensions: Dimensions = None
    keep_alive: Annotated[
        float | str | None, Meta(description="0 unloads the model afterwards; otherwise the server's own setting counts")
    ] = None


class OllamaVectors(msgspec.Struct):
    """The answer of /api/embed; durations in nanoseconds."""

    model: ModelName
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: Annotated[int, Meta(description="tokens of the texts")]


class OllamaPromptBody(msgspec.Struct, kw_only=True):
    prompt: Annotated[str | None, Meta(description="a text; without it the model is only loaded")] = None
    model: Annotated[str | None, Meta(description=NAME)] = None
    keep_alive: Annotated[
        float | str | None, Meta(description="0 unloads the model afterwards; otherwise the server's own setting counts")
    ] = None


class OllamaVector(msgspec.Struct):
    """The answer of /api/embeddings."""

    embedding: list[float]


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
        """Make the vectors of texts.

        They are of length 1. Token ids are those of the model itself, and are taken as they are.
        """
        body = await read(request, EmbeddingsBody)
        check_ranges(body)
        texts = prompts(body.input, "input")
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models, kind="embedding")
        check_dimensions(loaded, body.dimensions)
        computed = await vectors(loaded, texts, request.receive)
        rows = await written(shortened(computed.rows, body.dimensions), body.encoding_format or "float")
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        usage = {"prompt_tokens": computed.tokens, "total_tokens": computed.tokens}
        return reply({"object": "list", "data": data, "model": body.model or loaded.spec.id, "usage": usage})


class OllamaEmbed:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        contract: dict[str, Any] = {"tag": "ollama", "method": "POST", "errors": (404, 503)}
        return [
            Endpoint("/api/embed", self.embed, body=OllamaEmbedBody, answer=OllamaVectors, **contract),
            Endpoint("/api/embeddings", self.embed_one, body=OllamaPromptBody, answer=OllamaVector, **contract),
        ]

    async def embed(self, request: Request) -> Response:
        """Make the vectors of texts, in Ollama's shape.

        They are of length 1. A text that is too long is cut.
        """
        began, body = time.perf_counter_ns(), await read(request, OllamaEmbedBody)
        check_ranges(body)
        texts = [body.input] if isinstance(body.input, str) else body.input or []
        loaded = await self._lease(request, body.model, body.keep_alive)
        ready = time.perf_counter_ns()
        check_dimensions(loaded, body.dimensions)
        rows, tokens = [], 0
        if texts:
            computed = await vectors(loaded, texts, request.receive, truncate=body.truncate is not False)
            rows, tokens = await written(shortened(computed.rows, body.dimensions), "float"), computed.tokens
        took = {"total_duration": time.perf_counter_ns() - began, "load_duration": ready - began}
        return reply({"model": body.model or loaded.spec.id, "embeddings": rows, **took, "prompt_eval_count": tokens})

    async def embed_one(self, request: Request) -> Response:
        """Make the vector of one text, in Ollama's older shape."""
        body = await read(request, OllamaPromptBody)
        loaded = await self._lease(request, body.model, body.keep_alive)
        if not body.prompt:
            return reply({"embedding": []})
        computed = await vectors(loaded, [body.prompt], request.receive, truncate=True)
        return reply({"embedding": (await written(computed.rows, "float"))[0]})

    async def _lease(self, request: Request, model: str | None, keep_alive: float | str | None) -> Loaded:
        leaves = keep_alive is not None and seconds("keep_alive", keep_alive) == 0
        name = untagged(self._pool.registry, model) if model else None
        loaded = await lease(request, self._pool, name, strict=self._settings.strict_models, kind="embedding")
        if leaves:
            afterwards(request, lambda: self._pool.let_go(loaded.spec.id))
        return loaded
