"""OpenAI's dialect: /v1/chat/completions, /v1/completions, /v1/models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.chat.turn import Turn
from locallab.errors import ModelNotLoaded
from locallab.pool import Pool
from locallab.server.dialects.answer_fields import usage_body
from locallab.server.dialects.dialect import Dialect, Services
from locallab.server.dialects.openai.chat import ChatBody, ChatCompletion, message_body
from locallab.server.dialects.openai.completions import CompletionBody, TextCompletion, choices, complete
from locallab.server.dialects.openai.embeddings import Embeddings
from locallab.server.dialects.openai.errors import OpenAIProblem, openai_body
from locallab.server.dialects.openai.fim import Fim
from locallab.server.dialects.openai.logprobs import Echo, chat_logprobs
from locallab.server.dialects.openai.models import ModelCard, ModelList, model_cards
from locallab.server.dialects.openai.rerank import Rerank
from locallab.server.dialects.openai.stream import ChatChunks, CompletionChunks, Head, ScoredChat, ScoredCompletions
from locallab.server.endpoint import Endpoint, Generating
from locallab.server.fields.body import read
from locallab.server.inference.generation import FinishedAnswer, Generation, collect
from locallab.server.inference.lease import lease
from locallab.server.inference.prompt import constrained, prepare_chat
from locallab.server.inference.reader import read_whole
from locallab.server.reply import noted, reply
from locallab.server.streaming import Chunks, EventStream
from locallab.settings import ServerSettings


class OpenAI:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Generating("/v1/chat/completions", self.chat, tag="openai", body=ChatBody, answer=ChatCompletion),
            Generating("/v1/completions", self.completions, tag="openai", body=CompletionBody, answer=TextCompletion),
            Endpoint("/v1/models", self.models, tag="openai", answer=ModelList),
            Endpoint("/v1/models/{id:path}", self.model, tag="openai", answer=ModelCard, errors=(404,)),
        ]

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a conversation."""
        body = await read(request, ChatBody)
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        params = body.told(body.scored(body.params(loaded.engine.info.n_vocab, None)))
        notes: list[str] = []
        asked = await prepare_chat(loaded, body.request(notes), params, body.n or 1)
        n, told = len(asked.jobs), params.logprobs is not None
        head = Head.make("chatcmpl", body.model or loaded.spec.id)
        if body.stream:
            stream = ScoredChat if told else ChatChunks
            chunks = stream(head, asked.turn, n, include_usage=body.include_usage)
            return noted(EventStream(Generation(loaded.engine, asked.jobs), chunks), notes)
        answers = await collect(loaded.engine, asked.jobs, request.receive)
        choices = [_choice(index, answer, asked.turn, told) for index, answer in enumerate(answers)]
        return noted(reply(head.body("chat.completion", choices, usage=_usage(answers, n))), notes)

    async def completions(self, request: Request) -> ASGIApp:
        """Complete one prompt or several as they stand, or fill in what is between one and a suffix."""
        body = await read(request, CompletionBody)
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        body.check()
        params = body.told(body.scored(body.params(loaded.engine.info.n_vocab, self._settings.completion_tokens)))
        asked = await complete(loaded, body, await constrained(loaded, params, body.constraint()))
        head, urgent = Head.make("cmpl", body.model or loaded.spec.id), bool(body.suffix)
        if body.stream:
            chunks = _chunks(head, body, [echo for echo in asked.echoes for _ in range(body.written)])
            return EventStream(Generation(loaded.engine, asked.jobs, urgent=urgent), chunks)
        answers = await collect(loaded.engine, asked.jobs, request.receive, urgent=urgent)
        usage = _usage(answers, body.written)
        return reply(head.body("text_completion", choices(body, asked.echoes, answers), usage=usage))

    async def models(self, request: Request) -> Response:
        """The models that can be asked: the loaded ones first, then those that a request would load."""
        cards = list(model_cards(self._pool))
        return reply(ModelList("list", cards, cards))

    async def model(self, request: Request) -> Response:
        """One model that can be asked."""
        spec = self._pool.registry.get(request.path_params["id"])
        card = next((card for card in model_cards(self._pool) if card.id == spec.id), None)
        if card is None:
            raise ModelNotLoaded(spec.id)
        return reply(card)


def _choice(index: int, answer: FinishedAnswer, turn: Turn, told: bool) -> dict[str, Any]:
    said, end = read_whole(turn, answer)
    logprobs = chat_logprobs(answer.logprobs) if told else None
    return {"index": index, "message": message_body(said), "logprobs": logprobs, "finish_reason": end.finish_reason}


def _chunks(head: Head, body: CompletionBody, echoes: Sequence[Echo | None]) -> Chunks:
    n, include_usage = body.written, body.include_usage
    if body.alternatives is not None:
        return ScoredCompletions(head, echoes, n=n, include_usage=include_usage)
    return CompletionChunks(head, [echo.text if echo else "" for echo in echoes], n=n, include_usage=include_usage)


def _usage(answers: Sequence[FinishedAnswer], n: int) -> dict[str, Any]:
    return usage_body([answer.usage for answer in answers], n)


def routes(services: Services) -> list[BaseRoute]:
    return [route for group in (OpenAI, Fim, Embeddings, Rerank) for route in group(services.pool, services.settings).routes()]


OPENAI = Dialect(
    name="openai",
    prefixes=("/v1",),
    error_body=openai_body,
    problem=OpenAIProblem,
    routes=routes,
    tags={"openai": "OpenAI's dialect, for the clients that speak it."},
    prompts={
        "/v1/completions": "prompt",
        "/v1/fim/completions": "prompt",
        "/v1/embeddings": "input",
        "/v1/rerank": "documents",
    },
    bare=frozenset({"/chat/completions", "/completions", "/models", "/models/", "/embeddings", "/rerank", "/fim/completions"}),
)
