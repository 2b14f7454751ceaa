"""Fill-in-the-middle: /v1/fim/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.pool import Pool
from locallab.server.dialects.answer_fields import FinishReason, Timings, UsageFigures
from locallab.server.dialects.openai.chat import OpenAIBody
from locallab.server.dialects.openai.fields import FIM
from locallab.server.dialects.openai.stream import Head, OpenAIFormatter
from locallab.server.endpoint import Generating
from locallab.server.fields.body import first, read
from locallab.server.fields.table import Others, alias
from locallab.server.inference.answer import answer
from locallab.server.inference.generation import FinishedAnswer
from locallab.server.inference.lease import lease
from locallab.server.inference.prompt import compile_constraint, gap_prompt, jobs_for
from locallab.settings import ServerSettings


class FimBody(OpenAIBody, kw_only=True):
    prompt: Annotated[str, Meta(description="text before the gap")]
    suffix: Annotated[str | None, Meta(description="text after the gap")] = None
    random_seed: Annotated[int | None, alias("seed")] = None

    OTHERS: ClassVar[Others] = {**OpenAIBody.OTHERS, **FIM}


class FimMessage(msgspec.Struct):
    role: str
    content: str


class FimChoice(msgspec.Struct):
    index: int
    message: FimMessage
    text: Annotated[str, Meta(description="the same text as in the message")]
    finish_reason: FinishReason


class FimCompletion(msgspec.Struct):
    """The answer of /v1/fim/completions: the text for the gap, under the names that clients look for."""

    id: str
    object: str
    created: int
    model: str
    choices: list[FimChoice]
    usage: UsageFigures
    timings: Timings


class Fim:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [Generating("/v1/fim/completions", self.fim, tag="openai", body=FimBody, answer=FimCompletion)]

    async def fim(self, request: Request) -> ASGIApp:
        """Fill in the text between a prompt and a suffix."""
        body = await read(request, FimBody)
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        body.seed = first(body.seed, body.random_seed)
        constraint = body.constraint()
        params = body.params(loaded.engine.info, self._settings.completion_tokens, constraint=constraint)
        await compile_constraint(loaded, constraint)
        n = body.count
        jobs = jobs_for([await gap_prompt(loaded, body.prompt, body.suffix or "")], params, n)
        head, lengths = Head.make("fim", body.model or loaded.spec.id), body.lengths(jobs)
        formatter = FimFormatter(head, n, n=n, include_usage=body.include_usage, lengths=lengths)
        return await answer(request, loaded, jobs, formatter, stream=body.stream, urgent=True)


class FimFormatter(OpenAIFormatter):
    """Formats chat choices that also have the text by itself."""

    kind = "chat.completion.chunk"

    def opening(self, index: int) -> list[dict[str, Any]]:
        return []

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return self._choice("delta", index, text, finish_reason)

    def whole_choices(self, answers: Sequence[FinishedAnswer]) -> list[dict[str, Any]]:
        return [self._choice("message", index, each.text, each.finish_reason) for index, each in enumerate(answers)]

    def _choice(self, key: str, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, key: {"role": "assistant", "content": text}, "text": text, "finish_reason": finish_reason}
