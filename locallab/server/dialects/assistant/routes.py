"""The coding assistant over HTTP: /api/v1/assistant/*."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.pool import Pool
from locallab.server.dialects.answer_fields import Problem
from locallab.server.dialects.assistant.answer import AssistantAnswer, AssistantFormatter, problem
from locallab.server.dialects.assistant.request import AssistantBody, check, prepare_question
from locallab.server.dialects.assistant.templates import Templates, overrides
from locallab.server.dialects.assistant.websocket import Socket
from locallab.server.dialects.dialect import Dialect, Services
from locallab.server.endpoint import Endpoint, Generating
from locallab.server.errors import detail_body
from locallab.server.fields.body import read
from locallab.server.inference.answer import answer
from locallab.server.inference.lease import lease
from locallab.server.reply import reply
from locallab.settings import ServerSettings

ROOT = "/api/v1/assistant"


class TaskTemplates(msgspec.Struct):
    """The user's message of each task, with the field that takes the prompt."""

    refactor: str
    debug: str
    generate: str
    audit: str
    document: str


class TemplatesAnswer(msgspec.Struct):
    templates: TaskTemplates


class Assistant:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings, templates: Templates) -> None:
        self._pool = pool
        self._settings = settings
        self._templates = templates

    def routes(self) -> list[BaseRoute]:
        handlers = (self.generate, self.refactor, self.debug, self.audit, self.document, self.chat)
        tasks = [
            Generating(f"{ROOT}/{handler.__name__}", handler, tag="assistant", body=AssistantBody, answer=AssistantAnswer)
            for handler in handlers
        ]
        return [*tasks, Endpoint(f"{ROOT}/templates", self.templates, tag="assistant", answer=TemplatesAnswer)]

    async def generate(self, request: Request) -> ASGIApp:
        """Write code.

        A prompt that is the beginning of a program, such as `def hello`, is continued: the response is the whole program. With
        `suffix`, models that can fill in the middle fill in the code between the two. Any other prompt is a description.
        """
        return await self._answer(request, "generate")

    async def refactor(self, request: Request) -> ASGIApp:
        """Make code simpler and clearer: the new code, then a list of changes."""
        return await self._answer(request, "refactor")

    async def debug(self, request: Request) -> ASGIApp:
        """Find bugs in code: the diagnosis, then the fix.

        With `format` json, `result` has the fields `diagnosis`, `fix` and `code`.
        """
        return await self._answer(request, "debug")

    async def audit(self, request: Request) -> ASGIApp:
        """Audit code for security: findings with their severity and line.

        With `format` json, `result` has the fields `findings`, a list of objects with `title`, `detail`, `line`, `severity` and
        `fix`, and `summary`.
        """
        return await self._answer(request, "audit")

    async def document(self, request: Request) -> ASGIApp:
        """Add docstrings and comments to code."""
        return await self._answer(request, "document")

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a question, with the conversation before it in `history`."""
        return await self._answer(request, "chat")

    async def templates(self, request: Request) -> Response:
        """Show the template of each task, with the field that takes the prompt."""
        return reply(TemplatesAnswer(TaskTemplates(**self._templates.templates)))

    async def _answer(self, request: Request, task: str) -> ASGIApp:
        question = check(await read(request, AssistantBody), task)
        loaded = await lease(request, self._pool, question.model, strict=True)
        prepared = await prepare_question(question, loaded, self._templates, self._settings)
        formatter = AssistantFormatter(prepared)
        stream, notes = question.body.stream, prepared.notes
        return await answer(request, loaded, [prepared.job], formatter, stream=stream, notes=notes, urgent=prepared.urgent)


def routes(services: Services) -> list[BaseRoute]:
    pool, settings = services.pool, services.settings
    templates = Templates.load(*overrides(settings.templates))
    return [*Assistant(pool, settings, templates).routes(), *Socket(pool, settings, templates).routes()]


ASSISTANT = Dialect(
    name="assistant",
    prefixes=("/api/v1",),
    error_body=detail_body,
    problem=Problem,
    routes=routes,
    tags={"assistant": "Tasks around code."},
    areas={"/api/v1": "assistant"},
    failing=problem,
)
