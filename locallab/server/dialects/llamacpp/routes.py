"""The dialect of llama.cpp's server."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.pool import Pool
from locallab.server.dialects.dialect import Dialect, Services
from locallab.server.dialects.llamacpp.adapters import AdapterRoutes
from locallab.server.dialects.llamacpp.props import PropsRoutes
from locallab.server.dialects.llamacpp.request import InfillBody, LlamaCompletionBody
from locallab.server.dialects.llamacpp.settings import settings_body
from locallab.server.dialects.llamacpp.stream import LlamaAnswers, LlamaFormatter
from locallab.server.dialects.llamacpp.tokens import TokenRoutes
from locallab.server.dialects.openai.embeddings import Embeddings, EmbeddingsBody, LlamaVector
from locallab.server.dialects.openai.errors import OpenAIProblem, openai_body
from locallab.server.endpoint import Endpoint, Generating
from locallab.server.fields.body import read
from locallab.server.inference.answer import answer
from locallab.server.inference.lease import lease
from locallab.server.inference.prompt import compile_constraint, jobs_for, text_of
from locallab.settings import ServerSettings


class LlamaCpp:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Generating("/infill", self.infill, tag="llama.cpp", body=InfillBody, answer=LlamaAnswers),
            Generating("/completion", self.completion, tag="llama.cpp", body=LlamaCompletionBody, answer=LlamaAnswers),
        ]

    async def infill(self, request: Request) -> ASGIApp:
        """Fill in the text between a prefix and a suffix, as llama.cpp's server does."""
        return await self._answer(request, await read(request, InfillBody), urgent=True)

    async def completion(self, request: Request) -> ASGIApp:
        """Complete a prompt without a template, as llama.cpp's server does."""
        return await self._answer(request, await read(request, LlamaCompletionBody), urgent=False)

    async def _answer(self, request: Request, body: InfillBody | LlamaCompletionBody, urgent: bool) -> ASGIApp:
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        notes: list[str] = []
        params = loaded.adapted(body.sampling(loaded.engine.info, self._settings.completion_tokens, notes))
        await compile_constraint(loaded, params.constraint)
        prompts, n = await body.tokens(loaded, notes), body.n_cmpl or 1
        for prompt in prompts:
            loaded.text_engine.check(prompt, params)  # before their texts are put together
        formatter = LlamaFormatter(
            body.model or loaded.spec.id,
            [text for prompt in prompts for text in [await text_of(loaded, prompt)] * n],
            settings_body(params, loaded.engine.info, stream=bool(body.stream)),
            context=loaded.engine.info.context,
            scored=params.logprobs is not None,
            drawn=params.drawn_logprobs,
            tokens=bool(body.return_tokens),
            fields=body.response_fields or (),
        )
        jobs = jobs_for(prompts, params, n)
        return await answer(request, loaded, jobs, formatter, stream=body.stream, notes=notes, urgent=urgent)


class Embedding:
    """The route of llama.cpp's own embeddings."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._embeddings = Embeddings(pool, settings)

    def routes(self) -> list[BaseRoute]:
        common: dict[str, Any] = {"tag": "llama.cpp", "method": "POST", "errors": (404, 503)}
        return [Endpoint("/embedding", self.embedding, body=EmbeddingsBody, answer=list[LlamaVector], **common)]

    async def embedding(self, request: Request) -> ASGIApp:
        """Embed texts, and answer as llama.cpp's server does."""
        return await self._embeddings.embed(request, await read(request, EmbeddingsBody), listed=True)


def routes(services: Services) -> list[BaseRoute]:
    pool, settings = services.pool, services.settings
    groups = (
        LlamaCpp(pool, settings),
        Embedding(pool, settings),
        PropsRoutes(pool),
        AdapterRoutes(pool),
        TokenRoutes(pool, settings),
    )
    return [route for group in groups for route in group.routes()]


LLAMACPP = Dialect(
    name="llamacpp",
    prefixes=("/infill", "/completion", "/embedding", "/props", "/slots", "/lora-adapters"),
    error_body=openai_body,
    problem=OpenAIProblem,
    routes=routes,
    tags={
        "llama.cpp": "The API of llama.cpp's server, which editors use.",
        "tokens": "Tokenizing and detokenizing, in the shapes of llama.cpp's server.",
    },
    prompts={"/completion": "prompt", "/infill": "input_prefix", "/embedding": "content"},
)
