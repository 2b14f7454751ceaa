"""LocalLab's own routes: /generate, /chat, /models/*, /system/info, /health."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from locallab import __version__, hardware
from locallab.chat import Message, normalize
from locallab.engine import build_features
from locallab.errors import InvalidField
from locallab.models.registry import ModelSpec
from locallab.pool import Loaded, Pool
from locallab.server.chunks import ChatChunks, Head, NativeChunks, usage_body
from locallab.server.errors import RETRY_AFTER
from locallab.server.fields import Sampling, read
from locallab.server.generate import Generation, collect
from locallab.server.prompts import chat_prompt, text_prompt
from locallab.server.reply import reply
from locallab.server.sse import EventStream
from locallab.settings import ServerSettings

SERVICE = "locallab"


class NativeBody(Sampling, kw_only=True):
    """What /generate and /chat have in common. `max_length` counts tokens of the answer, without the prompt."""

    model_id: str | None = None
    stream: bool | None = None
    max_length: int | None = None

    LIMITS: ClassVar[tuple[str, ...]] = ("max_length", "max_tokens")


class GenerateBody(NativeBody, kw_only=True):
    """`chat_template` true sends the prompt as a user's message, through the model's template."""

    prompt: str | None = None
    chat_template: bool | None = None


class ChatBody(NativeBody, kw_only=True):
    messages: Any = None


class LoadBody(msgspec.Struct):
    model_id: str | None = None


class Native:
    """The routes. `facts` and `features` tell about the machine and about llama.cpp's build."""

    def __init__(
        self,
        pool: Pool,
        settings: ServerSettings,
        facts: Callable[[], dict[str, Any]] = hardware.facts,
        features: Callable[[], dict[str, Any]] = build_features,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._facts = facts
        self._features = features
        self._started = time.monotonic()

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.root),
            Route("/generate", self.generate, methods=["POST"]),
            Route("/chat", self.chat, methods=["POST"]),
            Route("/models/current", self.current),
            Route("/models/available", self.available),
            Route("/models/load", self.load, methods=["POST"]),
            Route("/system/info", self.info),
            Route("/health", self.health),
            Route("/health/ready", self.ready),
            Route("/health/live", self.live),
        ]

    async def root(self, request: Request) -> Response:
        current = self._pool.current
        return reply({"service": SERVICE, "version": __version__, "model": current and current.spec.id})

    async def generate(self, request: Request) -> ASGIApp:
        body = await read(request, GenerateBody)
        loaded = self._pool.find(body.model_id, strict=True)
        params = body.params(loaded.engine.info.n_vocab, self._settings.completion_tokens)
        if body.prompt is None:
            raise InvalidField("prompt", "is missing")
        as_chat = [Message("user", body.prompt)] if body.chat_template else None
        prompt = await (chat_prompt(loaded, as_chat) if as_chat else text_prompt(loaded, body.prompt))
        if body.stream:
            return EventStream(Generation(loaded.engine, [(prompt, params)]), NativeChunks(loaded.spec.id))
        [answer] = await collect(loaded.engine, [(prompt, params)], request.receive)
        end = {"finish_reason": answer.finish_reason, "usage": usage_body([answer.usage])}
        return reply({"response": answer.text, "model": loaded.spec.id, **end})

    async def chat(self, request: Request) -> ASGIApp:
        body = await read(request, ChatBody)
        loaded = self._pool.find(body.model_id, strict=True)
        params = body.params(loaded.engine.info.n_vocab, None)
        prompt = await chat_prompt(loaded, normalize(body.messages))
        head = Head.make("chatcmpl", loaded.spec.id)
        if body.stream:
            return EventStream(Generation(loaded.engine, [(prompt, params)]), ChatChunks(head, finish_usage=True))
        [answer] = await collect(loaded.engine, [(prompt, params)], request.receive)
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        end = {"finish_reason": answer.finish_reason, "usage": usage_body([answer.usage])}
        return reply(head.body("chat.completion", [choice], **end))

    async def current(self, request: Request) -> Response:
        current = self._pool.current
        return reply(self._loaded(current) if current else {"name": None, "loaded": False, "status": "unloaded"})

    async def available(self, request: Request) -> Response:
        return reply({"models": [self._entry(spec) for spec in self._pool.registry]})

    async def load(self, request: Request) -> Response:
        body = await read(request, LoadBody)
        if not body.model_id:
            raise InvalidField("model_id", "is missing")
        return reply(self._loaded(await self._pool.load(body.model_id)))

    async def info(self, request: Request) -> Response:
        current = self._pool.current
        stats = {"stats": dataclasses.asdict(current.engine.stats())} if current else {}
        return reply(
            {
                "service": SERVICE,
                "version": __version__,
                "uptime_seconds": round(time.monotonic() - self._started, 3),
                "system": await asyncio.to_thread(self._facts),
                "build": await asyncio.to_thread(self._features),
                "model": {**self._loaded(current), **stats} if current else None,
            }
        )

    async def health(self, request: Request) -> Response:
        current = self._pool.current
        return reply({"status": "healthy", "service": SERVICE, "version": __version__, "model": current and current.spec.id})

    async def ready(self, request: Request) -> Response:
        current = self._pool.current
        if current is None:
            return reply({"status": "not ready", "service": SERVICE}, 503, {"retry-after": str(RETRY_AFTER)})
        return reply({"status": "ready", "service": SERVICE, "model": current.spec.id})

    async def live(self, request: Request) -> Response:
        return reply({"status": "alive", "service": SERVICE})

    def _entry(self, spec: ModelSpec) -> dict[str, Any]:
        """A model of the registry, and how it stands."""
        error = self._pool.error(spec.id)
        status = self._pool.status(spec.id)
        return {
            "name": spec.id,
            "aliases": spec.aliases,
            "size": readable_size(spec.size),
            "size_bytes": spec.size,
            "context": spec.context,
            "description": spec.description,
            "recommended": spec.recommended,
            "loaded": status == "ready",
            "status": status,
            **({"error": error} if error else {}),
        }

    def _loaded(self, loaded: Loaded) -> dict[str, Any]:
        """The loaded model, with the figures it really has."""
        info = loaded.engine.info
        return {
            **self._entry(loaded.spec),
            "size": readable_size(info.size_bytes),
            "size_bytes": info.size_bytes,
            "context": info.context,
            "trained_context": info.n_ctx_train,
            "kv_tokens": info.kv_tokens,
            "parameters": info.n_params,
            "architecture": info.architecture,
            "type": info.description,
            "device": info.device,
            "prefix_reuse": info.reuse,
            "loaded_at": loaded.created,
        }


def readable_size(size: int) -> str:
    """Bytes as a figure of decimal units, such as 98MB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g}{unit}"
    return f"{size}B"
