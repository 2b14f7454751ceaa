"""OpenAI's dialect: /v1/chat/completions, /v1/completions, /v1/models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from locallab.chat import normalize
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField, ModelNotLoaded
from locallab.pool import Loaded, Pool
from locallab.server.chunks import ChatChunks, CompletionChunks, Head, usage_body
from locallab.server.fields import Sampling, read
from locallab.server.generate import Answer, Generation, Job, collect
from locallab.server.prompts import chat_prompt, text_prompt
from locallab.server.reply import reply
from locallab.server.sse import EventStream
from locallab.settings import ServerSettings

UNSUPPORTED = "not supported yet"


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class OpenAIBody(Sampling, kw_only=True):
    """What both routes have in common. A field that would change the answer and that we cannot heed is refused, not ignored."""

    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatBody(OpenAIBody, kw_only=True):
    messages: Any = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None

    LIMITS: ClassVar[tuple[str, ...]] = ("max_completion_tokens", "max_tokens")

    def check(self) -> None:
        """Raises InvalidField for what cannot be served."""
        _refuse("logprobs", bool(self.logprobs))
        _refuse("top_logprobs", bool(self.top_logprobs))
        _refuse("response_format", self.response_format is not None and self.response_format.get("type") != "text")
        _refuse("tools", bool(self.tools) and self.tool_choice != "none")
        _refuse("tool_choice", self.tool_choice not in (None, "auto", "none"))
        _refuse("functions", bool(self.functions) and self.function_call != "none")
        _refuse("function_call", self.function_call not in (None, "auto", "none"))
        _refuse("modalities", any(kind != "text" for kind in self.modalities or ()))


class CompletionBody(OpenAIBody, kw_only=True):
    prompt: Any = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: int | bool | None = None

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
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{id:path}", self.model),
        ]

    async def chat(self, request: Request) -> ASGIApp:
        body = await read(request, ChatBody)
        loaded = self._pool.find(body.model, strict=False)
        params = body.params(loaded.engine.info.n_vocab, None)
        body.check()
        prompt = await chat_prompt(loaded, normalize(body.messages))
        jobs = _jobs([prompt], params, body.n or 1)
        head = Head.make("chatcmpl", body.model or loaded.spec.id)
        if body.stream:
            chunks = ChatChunks(head, len(jobs), n=len(jobs), include_usage=body.include_usage)
            return EventStream(Generation(loaded.engine, jobs), chunks)
        answers = await collect(loaded.engine, jobs, request.receive)
        choices = [_choice(i, a, message={"role": "assistant", "content": a.text}) for i, a in enumerate(answers)]
        return reply(head.body("chat.completion", choices, usage=_usage(answers, len(jobs))))

    async def completions(self, request: Request) -> ASGIApp:
        body = await read(request, CompletionBody)
        loaded = self._pool.find(body.model, strict=False)
        params = body.params(loaded.engine.info.n_vocab, self._settings.completion_tokens)
        body.check()
        given = prompts(body.prompt)
        n = body.n or 1
        echo = [text for text in _echoes(given, bool(body.echo)) for _ in range(n)]
        jobs = _jobs([await text_prompt(loaded, p) if isinstance(p, str) else p for p in given], params, n)
        head = Head.make("cmpl", body.model or loaded.spec.id)
        if body.stream:
            chunks = CompletionChunks(head, echo, n=n, include_usage=body.include_usage)
            return EventStream(Generation(loaded.engine, jobs), chunks)
        answers = await collect(loaded.engine, jobs, request.receive)
        choices = [_choice(i, a, text=echo[i] + a.text) for i, a in enumerate(answers)]
        return reply(head.body("text_completion", choices, usage=_usage(answers, n)))

    async def models(self, request: Request) -> Response:
        current = self._pool.current
        entries = [_entry(current)] if current else []
        return reply({"object": "list", "data": entries, "models": entries})

    async def model(self, request: Request) -> Response:
        wanted = request.path_params["id"]
        spec, current = self._pool.registry.get(wanted), self._pool.current
        if current is None or current.spec.id != spec.id:
            raise ModelNotLoaded(spec.id)
        return reply(_entry(current))


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


def _jobs(given: Sequence[Sequence[int]], params: SamplingParams, n: int) -> list[Job]:
    """`n` answers to each prompt, next to each other; of a seed each answer has its own."""
    seeds = [None if params.seed is None else (params.seed + i) & 0xFFFFFFFF for i in range(n)]
    return [(prompt, dataclasses.replace(params, seed=seed)) for prompt in given for seed in seeds]


def _refuse(field: str, wanted: bool) -> None:
    if wanted:
        raise InvalidField(field, UNSUPPORTED)


def _choice(index: int, answer: Answer, **what: Any) -> dict[str, Any]:
    return {"index": index, **what, "logprobs": None, "finish_reason": answer.finish_reason}


def _usage(answers: Sequence[Answer], n: int) -> dict[str, Any]:
    return usage_body([answer.usage for answer in answers], n)


def _entry(loaded: Loaded) -> dict[str, Any]:
    """A model with its context under every name that clients look for."""
    info = loaded.engine.info
    return {
        "id": loaded.spec.id,
        "name": loaded.spec.id,
        "object": "model",
        "created": loaded.created,
        "owned_by": "locallab",
        "context_length": info.context,
        "max_model_len": info.context,
        "meta": {
            "n_ctx": info.context,
            "n_ctx_train": info.n_ctx_train,
            "n_vocab": info.n_vocab,
            "n_params": info.n_params,
            "size": info.size_bytes,
        },
    }
