"""Ollama's dialect: /api/generate and /api/chat."""

from __future__ import annotations

import functools
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.chat.tools.formats.harmony import Harmony
from locallab.chat.turn import Turn
from locallab.errors import InvalidField
from locallab.media.attachment import Attachment
from locallab.pool import Loaded, Pool
from locallab.server.dialects.dialect import Dialect, Services
from locallab.server.dialects.ollama.embed import OllamaEmbed
from locallab.server.dialects.ollama.errors import OllamaProblem, ollama_body
from locallab.server.dialects.ollama.models import OllamaModels, check_load, named, untagged
from locallab.server.dialects.ollama.request import (
    OllamaBody,
    OllamaChatBody,
    OllamaGenerateBody,
    Options,
    conversation,
    prompted,
    seconds,
)
from locallab.server.dialects.ollama.stream import (
    ChatAnswer,
    ChatFormatter,
    Clock,
    GenerateAnswer,
    GenerateFormatter,
    OllamaFormatter,
    now,
)
from locallab.server.endpoint import Generating
from locallab.server.fields.body import read
from locallab.server.inference.answer import answer
from locallab.server.inference.lease import afterwards, lease
from locallab.server.inference.media import read_chat, read_images
from locallab.server.inference.prompt import PreparedChat, compile_constraint, gap_prompt, prepare_chat, text_prompt
from locallab.server.reply import reply
from locallab.server.roles import is_admin, require_admin
from locallab.server.streaming import LINES
from locallab.settings import ServerSettings


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
        """Answer a prompt, complete it, or fill in the text between it and a suffix."""
        clock, body = Clock(), await read(request, OllamaGenerateBody)
        body.check()
        if not (body.prompt or body.suffix or body.images):
            return await self._only_load(request, body, {"response": ""})
        loaded = await self._lease(request, body)
        clock.loaded()
        marks, media = await read_images(loaded, self._settings, body.images)
        if body.raw or body.suffix:
            prepared = await _completion(loaded, body, self._settings.completion_tokens, marks, tuple(media.values()))
        else:
            prepared = await prepare_chat(loaded, prompted(body, marks, media), body.params(loaded.engine.info, None))
        formatter = GenerateFormatter(prepared.turn, body.model or loaded.spec.id, clock)
        return await self._answer(request, loaded, prepared, body, formatter, [])

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a conversation, in Ollama's shape."""
        clock, body = Clock(), await read(request, OllamaChatBody)
        body.check()
        if body.messages is None or body.messages == []:
            return await self._only_load(request, body, {"message": {"role": "assistant", "content": ""}})
        loaded = await self._lease(request, body)
        clock.loaded()
        notes: list[str] = []
        chat = await read_chat(request, loaded, self._settings, notes, functools.partial(conversation, body))
        prepared = await prepare_chat(loaded, chat, body.params(loaded.engine.info, None))
        formatter = ChatFormatter(prepared.turn, body.model or loaded.spec.id, clock)
        return await self._answer(request, loaded, prepared, body, formatter, notes)

    async def _lease(self, request: Request, body: OllamaBody) -> Loaded:
        name = untagged(self._pool.registry, body.model) if body.model else None
        loaded = await lease(request, self._pool, name, strict=self._settings.strict_models)
        if body.leaves and is_admin(request):
            afterwards(request, lambda: self._pool.release_idle(loaded.spec.id))
        return loaded

    async def _only_load(self, request: Request, body: OllamaBody, piece: dict[str, Any]) -> ASGIApp:
        """Load the model, or unload it with a keep_alive of 0, for a request without a prompt."""
        strict = self._settings.strict_models
        if body.leaves:
            require_admin(request, "unloading a model")
            if (spec := named(self._pool, body.model, strict=strict)) is not None:
                await self._pool.unload(spec.id)
        else:
            check_load(request, self._pool, body.model, strict=strict)
            await self._lease(request, body)
        reason = "unload" if body.leaves else "load"
        return reply({"model": body.model or "", "created_at": now(), **piece, "done": True, "done_reason": reason})

    async def _answer(
        self,
        request: Request,
        loaded: Loaded,
        prepared: PreparedChat,
        body: OllamaBody,
        formatter: OllamaFormatter,
        notes: list[str],
    ) -> ASGIApp:
        if body.think and prepared.turn.tags is None and not isinstance(prepared.turn.format, Harmony):
            raise InvalidField("think", f"model {loaded.spec.id!r} does not support thinking; leave it out")
        requested, context = (body.options or Options()).num_ctx, loaded.engine.info.context
        if requested is not None and requested > context:
            notes.append(f"options.num_ctx: the context is {context} tokens, as in the server's settings")
        if body.keep_alive is not None:
            wanted = seconds("keep_alive", body.keep_alive)
            if body.leaves and not is_admin(request):
                notes.append("keep_alive: an API key with the role use unloads nothing")
            if wanted and max(wanted, -1) != max(self._pool.keep_alive, -1):
                notes.append("keep_alive: the server's own setting applies")
        stream = body.stream is not False
        return await answer(
            request, loaded, prepared.jobs, formatter, stream=stream, notes=notes, urgent=prepared.urgent, media_type=LINES
        )


async def _completion(
    loaded: Loaded, body: OllamaGenerateBody, longest: int, marks: str, media: tuple[Attachment, ...]
) -> PreparedChat:
    """Prepare the prompt as it stands behind its pictures, or the text around a gap: no template."""
    constraint = body.constraint()
    params = body.params(loaded.engine.info, longest, constraint)
    await compile_constraint(loaded, constraint)
    before, suffix = body.prompt or "", body.suffix
    prompt = await (gap_prompt(loaded, before, suffix) if suffix else text_prompt(loaded, marks + before, media))
    return PreparedChat(Turn(before, constraint, (), None, (), None, False), [(prompt, params)], urgent=bool(suffix))


def routes(services: Services) -> list[BaseRoute]:
    return [
        route for group in (Ollama, OllamaModels, OllamaEmbed) for route in group(services.pool, services.settings).routes()
    ]


OLLAMA = Dialect(
    name="ollama",
    prefixes=("/api",),
    error_body=ollama_body,
    problem=OllamaProblem,
    routes=routes,
    tags={"ollama": "Ollama's API."},
)
