"""Anthropic's dialect: /v1/messages, /v1/messages/count_tokens, /v1/models, and /api/hello."""

from __future__ import annotations

import functools

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField
from locallab.pool import Pool
from locallab.server.dialects.anthropic.errors import AnthropicProblem, anthropic_body
from locallab.server.dialects.anthropic.models import AnthropicModels
from locallab.server.dialects.anthropic.request import MessagesBody, chat_request
from locallab.server.dialects.anthropic.stream import AnthropicFormatter, MessageAnswer
from locallab.server.dialects.dialect import Dialect, Services
from locallab.server.endpoint import Endpoint, Generating
from locallab.server.fields.body import read
from locallab.server.inference.answer import answer
from locallab.server.inference.lease import lease
from locallab.server.inference.media import read_chat
from locallab.server.inference.prompt import prepare_chat
from locallab.server.reply import noted, reply
from locallab.settings import ServerSettings


class TokenCount(msgspec.Struct):
    """The answer of /v1/messages/count_tokens."""

    input_tokens: int


class Hello(msgspec.Struct):
    message: str


class Anthropic:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Generating("/v1/messages", self.messages, tag="anthropic", body=MessagesBody, answer=MessageAnswer),
            Endpoint(
                "/v1/messages/count_tokens",
                self.count_tokens,
                method="POST",
                tag="anthropic",
                body=MessagesBody,
                answer=TokenCount,
                errors=(404, 503),
            ),
            Endpoint("/api/hello", self.hello, tag="anthropic", answer=Hello),
        ]

    async def messages(self, request: Request) -> ASGIApp:
        """Answer a conversation, in Anthropic's shape."""
        body = await read(request, MessagesBody)
        if body.max_tokens is None:
            raise InvalidField("max_tokens", "is missing")
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        params = body.sampling(loaded.engine.info).params(loaded.engine.info, None)
        notes: list[str] = []
        chat = await read_chat(request, loaded, self._settings, notes, functools.partial(chat_request, body))
        prepared = await prepare_chat(loaded, chat, params)
        model = body.model or loaded.spec.id
        formatter = AnthropicFormatter(prepared.turn, model, prompt_tokens=len(prepared.jobs[0][0]))
        return await answer(request, loaded, prepared.jobs, formatter, stream=body.stream, notes=notes)

    async def count_tokens(self, request: Request) -> ASGIApp:
        """Count the tokens of a request without answering it."""
        body = await read(request, MessagesBody)
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        notes: list[str] = []
        chat = await read_chat(request, loaded, self._settings, notes, functools.partial(chat_request, body))
        prepared = await prepare_chat(loaded, chat, SamplingParams(), fits=False)
        return noted(reply(TokenCount(len(prepared.jobs[0][0]))), notes)

    async def hello(self, request: Request) -> Response:
        """Confirm that the server responds: Claude Code checks before its first request."""
        return reply(Hello("hello"))


def routes(services: Services) -> list[BaseRoute]:
    return [*AnthropicModels(services.pool).routes(), *Anthropic(services.pool, services.settings).routes()]


ANTHROPIC = Dialect(
    name="anthropic",
    prefixes=("/v1/messages", "/api/hello"),
    error_body=anthropic_body,
    problem=AnthropicProblem,
    routes=routes,
    tags={"anthropic": "Anthropic's API."},
    areas={"/api/hello": "open"},
    typed=True,
)
