"""Ollama's embeddings: /api/embed and /api/embeddings."""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.pool import Loaded, Pool
from locallab.server.dialects.answer_fields import ModelName
from locallab.server.dialects.ollama.fields import EMBED
from locallab.server.dialects.ollama.models import check_load, untagged
from locallab.server.dialects.ollama.request import seconds
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import check_ranges, read
from locallab.server.fields.table import Others
from locallab.server.inference.embedding import NAME, Dimensions, check_dimensions, first_components, json_rows, vectors
from locallab.server.inference.lease import afterwards, lease
from locallab.server.reply import reply
from locallab.server.roles import is_admin
from locallab.settings import ServerSettings


class OllamaEmbedBody(msgspec.Struct, kw_only=True):
    input: Annotated[str | list[str] | None, Meta(description="a text, or texts; without any, the model is only loaded")] = None
    model: Annotated[str | None, Meta(description=NAME)] = None
    truncate: Annotated[bool | None, Meta(description="false: refuse a text that is too long instead of truncating it")] = None
    dimensions: Dimensions = None
    keep_alive: Annotated[
        float | str | None, Meta(description="0 unloads the model afterwards; for other values the server's setting applies")
    ] = None

    OTHERS: ClassVar[Others] = EMBED


class OllamaVectors(msgspec.Struct):
    """The answer of /api/embed; durations in nanoseconds."""

    model: ModelName
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: Annotated[int, Meta(description="tokens of the texts")]


class OllamaPromptBody(msgspec.Struct, kw_only=True):
    prompt: Annotated[str | None, Meta(description="a text; without it, the model is only loaded")] = None
    model: Annotated[str | None, Meta(description=NAME)] = None
    keep_alive: Annotated[
        float | str | None, Meta(description="0 unloads the model afterwards; for other values the server's setting applies")
    ] = None

    OTHERS: ClassVar[Others] = EMBED


class OllamaVector(msgspec.Struct):
    """The answer of /api/embeddings."""

    embedding: list[float]


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
        """Embed texts, in Ollama's shape.

        Vectors are normalized to length 1. A text that is too long is truncated.
        """
        began, body = time.perf_counter_ns(), await read(request, OllamaEmbedBody)
        check_ranges(body)
        texts = [body.input] if isinstance(body.input, str) else body.input or []
        if not texts:
            check_load(request, self._pool, body.model, strict=self._settings.strict_models)
        loaded = await self._lease(request, body.model, body.keep_alive)
        ready = time.perf_counter_ns()
        check_dimensions(loaded, body.dimensions)
        rows, tokens = [], 0
        if texts:
            computed = await vectors(loaded, texts, request, truncate=body.truncate is not False)
            rows, tokens = await json_rows(first_components(computed.rows, body.dimensions), "float"), computed.tokens
        took = {"total_duration": time.perf_counter_ns() - began, "load_duration": ready - began}
        return reply({"model": body.model or loaded.spec.id, "embeddings": rows, **took, "prompt_eval_count": tokens})

    async def embed_one(self, request: Request) -> Response:
        """Embed one text, in Ollama's older shape."""
        body = await read(request, OllamaPromptBody)
        if not body.prompt:
            check_load(request, self._pool, body.model, strict=self._settings.strict_models)
        loaded = await self._lease(request, body.model, body.keep_alive)
        if not body.prompt:
            return reply({"embedding": []})
        computed = await vectors(loaded, [body.prompt], request, truncate=True)
        return reply({"embedding": (await json_rows(computed.rows, "float"))[0]})

    async def _lease(self, request: Request, model: str | None, keep_alive: float | str | None) -> Loaded:
        leaves = keep_alive is not None and seconds("keep_alive", keep_alive) == 0
        name = untagged(self._pool.registry, model) if model else None
        loaded = await lease(request, self._pool, name, strict=self._settings.strict_models, kind="embedding")
        if leaves and is_admin(request):
            afterwards(request, lambda: self._pool.release_idle(loaded.spec.id))
        return loaded
