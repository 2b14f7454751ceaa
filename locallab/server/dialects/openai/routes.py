"""OpenAI's dialect: /v1/chat/completions, /v1/completions, /v1/models, and those of its other modules."""

from __future__ import annotations

import dataclasses

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField, ModelNotLoaded
from locallab.pool import Pool
from locallab.server.dialects.answer_fields import PromptTokenCount
from locallab.server.dialects.dialect import Dialect, Services
from locallab.server.dialects.openai.chat import ChatBody, ChatCompletion
from locallab.server.dialects.openai.completions import CompletionBody, TextCompletion, complete
from locallab.server.dialects.openai.embeddings import Embeddings
from locallab.server.dialects.openai.errors import OpenAIProblem, openai_body
from locallab.server.dialects.openai.fim import Fim
from locallab.server.dialects.openai.models import ModelCard, ModelList, model_cards
from locallab.server.dialects.openai.rerank import Rerank
from locallab.server.dialects.openai.service import FINGERPRINT, TIER
from locallab.server.dialects.openai.stream import ChatFormatter, CompletionFormatter, Head, ScoredCompletionFormatter
from locallab.server.dialects.openai.transcriptions import Transcriptions
from locallab.server.endpoint import Endpoint, Generating
from locallab.server.fields.body import read
from locallab.server.inference.answer import answer
from locallab.server.inference.lease import lease
from locallab.server.inference.media import read_chat
from locallab.server.inference.prompt import prepare_chat
from locallab.server.reply import noted, reply
from locallab.settings import ServerSettings


class OpenAI:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Generating("/v1/chat/completions", self.chat, tag="openai", body=ChatBody, answer=ChatCompletion),
            Endpoint(
                "/v1/chat/completions/input_tokens",
                self.input_tokens,
                tag="openai",
                method="POST",
                body=ChatBody,
                answer=PromptTokenCount,
                errors=(404, 503),
            ),
            Generating("/v1/completions", self.completions, tag="openai", body=CompletionBody, answer=TextCompletion),
            Endpoint("/v1/models", self.models, tag="openai", answer=ModelList),
            Endpoint("/v1/models/{id:path}", self.model, tag="openai", answer=ModelCard, errors=(404,)),
        ]

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a conversation."""
        body = await read(request, ChatBody)
        request.state.caller = body.salted(request.state.caller)
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        params = body.params(loaded.engine.info, None)
        notes: list[str] = []
        chat = await read_chat(request, loaded, self._settings, notes, body.request)
        prepared = await prepare_chat(loaded, chat, params, body.count)
        if body.truncate_prompt_tokens:
            if prepared.turn.media:
                raise InvalidField("truncate_prompt_tokens", "cannot be combined with pictures and sounds, which are not cut")
            prepared = dataclasses.replace(prepared, jobs=[body.cut_job(job, loaded.engine.info) for job in prepared.jobs])
        formatter = ChatFormatter(
            Head.make("chatcmpl", body.model or loaded.spec.id, {"service_tier": TIER, "system_fingerprint": FINGERPRINT}),
            prepared.turn,
            body.count,
            scored=body.alternatives is not None,
            alternatives=body.alternatives,
            prompt_alternatives=body.prompt_logprobs,
            include_usage=body.include_usage,
            lengths=body.lengths(prepared.jobs),
            prompts=[prompt for prompt, _ in prepared.jobs] if body.return_token_ids else None,
        )
        return await answer(request, loaded, prepared.jobs, formatter, stream=body.stream, notes=notes)

    async def input_tokens(self, request: Request) -> ASGIApp:
        """Count the tokens of a conversation without answering it, as llama.cpp's server does."""
        body, notes = await read(request, ChatBody), list[str]()
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        chat = await read_chat(request, loaded, self._settings, notes, body.request)
        prepared = await prepare_chat(loaded, chat, SamplingParams(), fits=False)
        return noted(reply(PromptTokenCount("response.input_tokens", len(prepared.jobs[0][0]))), notes)

    async def completions(self, request: Request) -> ASGIApp:
        """Complete prompts without a template, or fill in the text between a prompt and a suffix."""
        body = await read(request, CompletionBody)
        request.state.caller = body.salted(request.state.caller)
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        body.check()
        params = body.params(loaded.engine.info, self._settings.completion_tokens)
        completion = await complete(loaded, body, params)
        kind = CompletionFormatter if body.alternatives is None else ScoredCompletionFormatter
        head = Head.make("cmpl", body.model or loaded.spec.id, {"system_fingerprint": FINGERPRINT})
        formatter = kind(head, body, completion)
        return await answer(request, loaded, completion.jobs, formatter, stream=body.stream, urgent=bool(body.suffix))

    async def models(self, request: Request) -> Response:
        """List the models that requests may name: the loaded ones, then those that a request would load."""
        cards = list(model_cards(self._pool))
        return reply(ModelList("list", cards, cards))

    async def model(self, request: Request) -> Response:
        """Show one model that requests may name."""
        spec = self._pool.registry.get(request.path_params["id"])
        card = next((card for card in model_cards(self._pool) if card.id == spec.id), None)
        if card is None:
            raise ModelNotLoaded(spec.id)
        return reply(card)


def routes(services: Services) -> list[BaseRoute]:
    groups = (OpenAI, Fim, Embeddings, Rerank, Transcriptions)
    return [route for group in groups for route in group(services.pool, services.settings).routes()]


OPENAI = Dialect(
    name="openai",
    prefixes=("/v1",),
    error_body=openai_body,
    problem=OpenAIProblem,
    routes=routes,
    tags={"openai": "OpenAI's API."},
    prompts={
        "/v1/completions": "prompt",
        "/v1/fim/completions": "prompt",
        "/v1/embeddings": "input",
        "/v1/rerank": "documents",
        "/v1/audio/transcriptions": "file",
    },
)
