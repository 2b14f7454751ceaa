"""Ollama's dialect, the part that generates: /api/generate and /api/chat."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.chat import Message, normalize
from locallab.chat.fim import infill
from locallab.chat.tools.harmony import Harmony
from locallab.chat.turn import ChatRequest, Thinking, Turn
from locallab.engine.request import Constraint, SamplingParams
from locallab.errors import InvalidField
from locallab.pool import Loaded, Pool
from locallab.server.chatting import Asked, ask
from locallab.server.chunks_ollama import ChatAnswer, ChatChunks, Clock, GenerateAnswer, GenerateChunks, OllamaChunks, now
from locallab.server.durations import seconds
from locallab.server.endpoint import Generating
from locallab.server.fields import Sampling, read
from locallab.server.generate import Generation, follow
from locallab.server.leases import afterwards, lease
from locallab.server.notes import noted
from locallab.server.ollamacards import untagged
from locallab.server.prompts import text_prompt
from locallab.server.reply import reply
from locallab.server.sse import LINES, LineStream
from locallab.server.thinking import of_effort
from locallab.server.tools import read_tools
from locallab.settings import ServerSettings

CONVERSATION = {"type": "array", "items": {"type": "object", "required": ["role"]}}


class Options(Sampling, kw_only=True):
    """Those that draw the answer. What Ollama needs to load a model (num_gpu, num_thread, ...) is the server's own business."""

    num_predict: int | None = None
    num_ctx: int | None = None
    mirostat: int | None = None
    tfs_z: float | None = None
    penalize_newline: bool | None = None

    LIMITS: ClassVar[tuple[str, ...]] = ("num_predict", "max_tokens")

    def params(self, n_vocab: int, longest: int | None) -> SamplingParams:
        for field, value, off in (("mirostat", self.mirostat, 0), ("tfs_z", self.tfs_z, 1), ("penalize_newline", self.penalize_newline, True)):
            if value not in (None, off):
                raise InvalidField(field, f"is not supported; leave it out, or set it to {json.dumps(off)}")
        endless = self if self.num_predict != -2 else msgspec.structs.replace(self, num_predict=-1)
        return super(Options, endless).params(n_vocab, longest)


class OllamaBody(msgspec.Struct, kw_only=True):
    """What both routes have in common."""

    model: Annotated[str | None, Meta(description="the model to ask; an unknown name is the current one")] = None
    stream: Annotated[bool | None, Meta(description="false: the answer in one piece; a line for each piece otherwise")] = None
    options: Annotated[Options | None, Meta(description="how the answer is drawn, as Ollama names it")] = None
    format: Annotated[Any, Meta(description='"json", or a JSON schema that the answer must match')] = None
    think: Annotated[bool | str | None, Meta(description="whether to think first, or how hard: low, medium, high")] = None
    keep_alive: Annotated[
        float | str | None, Meta(description="0 unloads the model afterwards; otherwise the server's own setting counts")
    ] = None
    logprobs: Annotated[bool | None, Meta(description="not supported yet")] = None

    def constraint(self) -> Constraint | None:
        if self.format is None or self.format == "":
            return None
        if self.format == "json":
            return Constraint("json_object", field="format")
        if not isinstance(self.format, Mapping):
            raise InvalidField("format", 'expected "json" or a JSON schema')
        return Constraint("json_schema", json.dumps(self.format), "format")

    def thinking(self) -> Thinking:
        if self.think is None or self.think == "":
            return Thinking()
        return Thinking(enabled=self.think) if isinstance(self.think, bool) else of_effort(self.think)

    @property
    def leaves(self) -> bool:
        """Whether the model is to go when the answer is sent."""
        return self.keep_alive is not None and seconds("keep_alive", self.keep_alive) == 0


class OllamaGenerateBody(OllamaBody, kw_only=True):
    prompt: Annotated[str | None, Meta(description="what to answer; none or an empty one loads the model")] = None
    suffix: Annotated[str | None, Meta(description="the text that follows: what is between is filled in")] = None
    system: Annotated[str | None, Meta(description="what the model is told beforehand")] = None
    raw: Annotated[bool | None, Meta(description="go on with the prompt as it stands, without the model's template")] = None
    template: Annotated[str | None, Meta(description="not supported: the model's own counts")] = None
    context: Annotated[list[int] | None, Meta(description="not supported: send the conversation to /api/chat")] = None
    images: Annotated[list[Any] | None, Meta(description="not supported")] = None

    def check(self) -> None:
        """Raises InvalidField for what cannot be heeded."""
        _refuse("template", bool(self.template), "is not supported: the model's own counts; `raw` does without")
        _refuse("context", bool(self.context), "is not supported: send the conversation to /api/chat")
        _refuse("images", bool(self.images), "this model takes no images")
        for field in ("raw", "suffix"):
            if getattr(self, field):
                _refuse("system", bool(self.system), f"does not go with {field}: there is no template to put it in")
                _refuse("think", bool(self.think), f"does not go with {field}: there is no template to tell the model")
        _refuse("suffix", bool(self.suffix and self.raw), "does not go with raw: the prompt is no text as it stands then")


class OllamaChatBody(OllamaBody, kw_only=True):
    messages: Annotated[
        Any, Meta(description="the conversation, oldest first; none loads the model", extra_json_schema=CONVERSATION)
    ] = None
    tools: Annotated[Any, Meta(description="functions that the model may call")] = None


class Ollama:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Generating(
                "/api/generate",
                self.generate,
                tag="ollama",
                body=OllamaGenerateBody,
                answer=GenerateAnswer,
                stream_type=LINES,
            ),
            Generating("/api/chat", self.chat, tag="ollama", body=OllamaChatBody, answer=ChatAnswer, stream_type=LINES),
        ]

    async def generate(self, request: Request) -> ASGIApp:
        """Answer a prompt, go on with it, or fill in what is between it and a suffix."""
        clock, body = Clock(), await read(request, OllamaGenerateBody)
        body.check()
        if not (body.prompt or body.suffix):
            return await self._only_load(request, body, {"response": ""})
        loaded = await self._lease(request, body)
        clock.loaded()
        chat = not (body.raw or body.suffix)
        params = _params(body, loaded, None if chat else self._settings.completion_tokens)
        asked = await (ask(loaded, _prompted(body), params) if chat else _completion(loaded, body, params))
        return await self._answer(request, loaded, asked, body, GenerateChunks(asked.turn, _model(body, loaded), clock), [])

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a conversation, in Ollama's shape."""
        clock, body = Clock(), await read(request, OllamaChatBody)
        if not body.messages:
            return await self._only_load(request, body, {"message": {"role": "assistant", "content": ""}})
        loaded = await self._lease(request, body)
        clock.loaded()
        notes: list[str] = []
        asked = await ask(loaded, _conversation(body, notes), _params(body, loaded, None))
        return await self._answer(request, loaded, asked, body, ChatChunks(asked.turn, _model(body, loaded), clock), notes)

    async def _lease(self, request: Request, body: OllamaBody) -> Loaded:
        _refuse("logprobs", bool(body.logprobs), "is not supported yet")
        name = untagged(self._pool.registry, body.model) if body.model else None
        loaded = await lease(request, self._pool, name, strict=self._settings.strict_models)
        if body.leaves:
            afterwards(request, lambda: self._pool.let_go(loaded.spec.id))
        return loaded

    async def _only_load(self, request: Request, body: OllamaBody, piece: dict[str, Any]) -> ASGIApp:
        """Without anything to answer the model is loaded, or with a keep_alive of 0 unloaded."""
        if body.leaves:
            name = untagged(self._pool.registry, body.model) if body.model else None
            spec = self._pool.registry.get(name) if name else self._pool.default
            if spec is not None:
                await self._pool.unload(spec.id)
            reason: Literal["load", "unload"] = "unload"
        else:
            await self._lease(request, body)
            reason = "load"
        return reply({"model": body.model or "", "created_at": now(), **piece, "done": True, "done_reason": reason})

    async def _answer(
        self, request: Request, loaded: Loaded, asked: Asked, body: OllamaBody, chunks: OllamaChunks, notes: list[str]
    ) -> ASGIApp:
        if body.think and asked.turn.tags is None and not isinstance(asked.turn.format, Harmony):
            raise InvalidField("think", f"model {loaded.spec.id!r} does not support thinking; leave it out")
        notes += self._unheeded(body, loaded)
        if body.stream is not False:
            return noted(LineStream(Generation(loaded.engine, asked.jobs), chunks), notes)
        await follow(loaded.engine, asked.jobs, request.receive, chunks.take)
        return noted(reply(chunks.whole()), notes)

    def _unheeded(self, body: OllamaBody, loaded: Loaded) -> Iterator[str]:
        asked, real = (body.options or Options()).num_ctx, loaded.engine.info.context
        if asked is not None and asked > real:
            yield f"options.num_ctx: the context is {real} tokens; the server's own settings make it larger"
        if body.keep_alive is not None:
            wanted = seconds("keep_alive", body.keep_alive)
            if wanted and max(wanted, -1) != max(self._pool.keep_alive, -1):
                yield "keep_alive: how long a model stays is the server's own setting"


def _refuse(field: str, wanted: bool, reason: str) -> None:
    if wanted:
        raise InvalidField(field, reason)


def _model(body: OllamaBody, loaded: Loaded) -> str:
    return body.model or loaded.spec.id


def _params(body: OllamaBody, loaded: Loaded, longest: int | None) -> SamplingParams:
    with _field_of("options"):
        return (body.options or Options()).params(loaded.engine.info.n_vocab, longest)


@contextlib.contextmanager
def _field_of(outer: str) -> Iterator[None]:
    try:
        yield
    except InvalidField as error:
        raise InvalidField(f"{outer}.{error.field}", error.reason) from None


def _prompted(body: OllamaGenerateBody) -> ChatRequest:
    system = [Message("system", body.system)] if body.system else []
    messages = [*system, Message("user", body.prompt or "")]
    return ChatRequest(messages=messages, answer=body.constraint(), thinking=body.thinking())


async def _completion(loaded: Loaded, body: OllamaGenerateBody, params: SamplingParams) -> Asked:
    """The prompt as it stands, or what surrounds a gap: no template."""
    constraint = body.constraint()
    if constraint is not None:
        await asyncio.to_thread(loaded.engine.prepare, constraint)
    prompt = await (_around_gap(loaded, body) if body.suffix else text_prompt(loaded, body.prompt or ""))
    turn = Turn(body.prompt or "", constraint, (), None, (), None, False)
    return Asked(turn, [(prompt, dataclasses.replace(params, constraint=constraint))])


async def _around_gap(loaded: Loaded, body: OllamaGenerateBody) -> list[int]:
    engine = loaded.engine
    if engine.info.fim is None:
        raise InvalidField("suffix", f"model {loaded.spec.id!r} has no tokens to fill in text with; leave suffix out")
    tokenize = functools.partial(engine.tokenize, add_special=False, parse_special=False)
    return await asyncio.to_thread(infill, engine.info.fim, tokenize, body.prompt or "", body.suffix or "")


def _conversation(body: OllamaChatBody, notes: list[str]) -> ChatRequest:
    tools = read_tools(body.tools, notes)
    messages = normalize(list(_with_ids(body.messages)), notes)
    return ChatRequest(messages=messages, tools=tools, answer=body.constraint(), thinking=body.thinking())


def _with_ids(messages: object) -> Iterator[object]:
    """The messages with ids for their calls, which this dialect need not have: a result answers the first open call of its
    tool. They have the shape that the strictest template takes, and are the same each time, for the prefix cache."""
    if not isinstance(messages, list):
        raise InvalidField("messages", "expected a list of messages")
    waiting: list[tuple[str, str]] = []
    count = 0
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            yield message
            continue
        _refuse(f"messages[{index}].images", bool(message.get("images")), "this model takes no images")
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            message = {**message, "tool_calls": [_with_id(call, count + i) for i, call in enumerate(calls)]}
            waiting += [_named(call) for call in message["tool_calls"]]
            count += len(calls)
        elif message.get("role") == "tool" and not message.get("tool_call_id"):
            name = message.get("tool_name") or message.get("name")
            found = next((each for each in waiting if each[1] == name), next(iter(waiting), None))
            if found:
                waiting.remove(found)
            message = {**message, "name": name, "tool_call_id": found and found[0]}
        yield message
