"""OpenAI's dialect: /v1/chat/completions, /v1/completions, /v1/models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.errors import InvalidField, ModelNotLoaded
from locallab.pool import Pool
from locallab.server.answers import ChatCompletion, ModelCard, ModelList, TextCompletion
from locallab.server.chatting import ask, constrained, spread
from locallab.server.chunks import ChatChunks, CompletionChunks, Head, usage_body
from locallab.server.endpoint import Endpoint, Generating
from locallab.server.fields import read
from locallab.server.generate import Answer, Generation, collect
from locallab.server.leases import lease
from locallab.server.modelcards import model_cards
from locallab.server.notes import noted
from locallab.server.openai_chat import ChatBody, OpenAIBody, message_body
from locallab.server.prompts import text_prompt
from locallab.server.reader import read_whole
from locallab.server.reply import reply
from locallab.server.sse import EventStream
from locallab.settings import ServerSettings

UNSUPPORTED = "not supported yet"


PROMPTS = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}},
    ]
}
"""What `prompts` takes, as a JSON schema."""


class CompletionBody(OpenAIBody, kw_only=True):
    prompt: Annotated[Any, Meta(description="a text, texts, token ids, or lists of them", extra_json_schema=PROMPTS)]
    echo: Annotated[bool | None, Meta(description="put the prompt before its answer")] = None
    suffix: Annotated[str | None, Meta(description="not supported yet")] = None
    best_of: Annotated[int | None, Meta(description="only the same as n")] = None
    logprobs: Annotated[int | bool | None, Meta(description="not supported yet")] = None

    def check(self) -> None:
        """Raises InvalidField for what cannot be served."""
        _refuse("logprobs", self.logprobs is not None and self.logprobs is not False)
        _refuse("suffix", bool(self.suffix))
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidField("best_of", f"a value other than n is {UNSUPPORTED}")


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
        params = body.params(loaded.engine.info.n_vocab, None)
        notes: list[str] = []
        asked = await ask(loaded, body.request(notes), params, body.n or 1)
        n = len(asked.jobs)
        head = Head.make("chatcmpl", body.model or loaded.spec.id)
        if body.stream:
            chunks = ChatChunks(head, asked.turn, n, include_usage=body.include_usage)
            return noted(EventStream(Generation(loaded.engine, asked.jobs), chunks), notes)
        answers = await collect(loaded.engine, asked.jobs, request.receive)
        said = [read_whole(asked.turn, answer) for answer in answers]
        choices = [_choice(i, end.finish_reason, message=message_body(what)) for i, (what, end) in enumerate(said)]
        return noted(reply(head.body("chat.completion", choices, usage=_usage(answers, n))), notes)

    async def completions(self, request: Request) -> ASGIApp:
        """Complete one prompt or several as they stand."""
        body = await read(request, CompletionBody)
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        params = body.params(loaded.engine.info.n_vocab, self._settings.completion_tokens)
        body.check()
        params = await constrained(loaded, params, body.constraint())
        given = prompts(body.prompt)
        n = body.n or 1
        echo = [text for text in _echoes(given, bool(body.echo)) for _ in range(n)]
        jobs = spread([await text_prompt(loaded, p) if isinstance(p, str) else p for p in given], params, n)
        head = Head.make("cmpl", body.model or loaded.spec.id)
        if body.stream:
            chunks = CompletionChunks(head, echo, n=n, include_usage=body.include_usage)
            return EventStream(Generation(loaded.engine, jobs), chunks)
        answers = await collect(loaded.engine, jobs, request.receive)
        choices = [_choice(i, a.finish_reason, text=echo[i] + a.text) for i, a in enumerate(answers)]
        return reply(head.body("text_completion", choices, usage=_usage(answers, n)))

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


def prompts(raw: Any) -> list[str | list[int]]:
    """The prompts of /v1/completions: one text, texts, one list of token ids, or several such lists."""
    if raw is None:
        raise InvalidField("prompt", "is missing")
    if isinstance(raw, str):
        return [raw]
    if isinstance(raw, list) and raw:
        if all(isinstance(part, str) for part in raw):
            return raw
        if _tokens(raw):
            return [raw]
        if all(_tokens(part) for part in raw):
            return raw
    raise InvalidField(
        "prompt", "expected a string, a list of strings, a list of token ids, or a list of such lists, none empty"
    )


def _tokens(raw: Any) -> bool:
    return isinstance(raw, list) and bool(raw) and all(type(token) is int for token in raw)


def _echoes(given: Sequence[str | list[int]], wanted: bool) -> list[str]:
    """The text to put ahead of each prompt's answers."""
    if not wanted:
        return [""] * len(given)
    if not all(isinstance(prompt, str) for prompt in given):
        raise InvalidField("echo", "works for prompts given as text only")
    return [prompt for prompt in given if isinstance(prompt, str)]


def _refuse(field: str, wanted: bool) -> None:
    if wanted:
        raise InvalidField(field, UNSUPPORTED)


def _choice(index: int, finish_reason: str, **what: Any) -> dict[str, Any]:
    return {"index": index, **what, "logprobs": None, "finish_reason": finish_reason}


def _usage(answers: Sequence[Answer], n: int) -> dict[str, Any]:
    return usage_body([answer.usage for answer in answers], n)
