"""The dialect of llama.cpp's server: /infill and /completion."""

from __future__ import annotations

from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.pool import Pool
from locallab.server.dialects.dialect import Dialect, Services
from locallab.server.dialects.llamacpp.props import PropsRoute
from locallab.server.dialects.llamacpp.request import InfillBody, LlamaCompletionBody
from locallab.server.dialects.llamacpp.stream import LlamaAnswer, LlamaFormatter
from locallab.server.dialects.llamacpp.tokens import TokenRoutes
from locallab.server.dialects.openai.errors import OpenAIProblem, openai_body
from locallab.server.endpoint import Generating
from locallab.server.fields.body import read
from locallab.server.inference.answer import answer
from locallab.server.inference.lease import lease
from locallab.server.inference.prompt import compile_constraint
from locallab.settings import ServerSettings


class LlamaCpp:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Generating("/infill", self.infill, tag="llama.cpp", body=InfillBody, answer=LlamaAnswer),
            Generating("/completion", self.completion, tag="llama.cpp", body=LlamaCompletionBody, answer=LlamaAnswer),
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
        params = body.sampling(loaded.engine.info, self._settings.completion_tokens, notes)
        await compile_constraint(loaded, params.constraint)
        job = (await body.tokens(loaded, notes), params)
        formatter = LlamaFormatter(body.model or loaded.spec.id, scored=params.logprobs is not None)
        return await answer(request, loaded, [job], formatter, stream=body.stream, notes=notes, urgent=urgent)


def routes(services: Services) -> list[BaseRoute]:
    pool, settings = services.pool, services.settings
    return [*LlamaCpp(pool, settings).routes(), *PropsRoute(pool).routes(), *TokenRoutes(pool, settings).routes()]


LLAMACPP = Dialect(
    name="llamacpp",
    prefixes=("/infill", "/completion", "/props"),
    error_body=openai_body,
    problem=OpenAIProblem,
    routes=routes,
    tags={
        "llama.cpp": "The API of llama.cpp's server, which editors use.",
        "tokens": "Tokenizing and detokenizing, in the shapes of llama.cpp's server.",
    },
    prompts={"/completion": "prompt", "/infill": "input_prefix"},
)
