"""LocalLab's own generating routes: /generate and /chat."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.chat import Message, normalize
from locallab.chat.turn import ChatRequest, ReasoningOptions, Turn
from locallab.errors import InvalidField
from locallab.media.attachment import Attachment
from locallab.media.intake import Intake
from locallab.pool import Loaded, Pool
from locallab.server.dialects.native.client_lines import CHAT, GENERATE, ChatLines, TextLines, is_client
from locallab.server.dialects.native.stream import (
    BatchFormatter,
    Generated,
    GeneratedBatch,
    NativeChatAnswer,
    NativeChatFormatter,
    NativeFormatter,
)
from locallab.server.dialects.openai.stream import Head
from locallab.server.endpoint import Generating
from locallab.server.fields.body import read
from locallab.server.fields.constraint import Structured
from locallab.server.fields.messages import MESSAGES
from locallab.server.inference.answer import answer, whole_answer
from locallab.server.inference.generation import Job
from locallab.server.inference.lease import lease
from locallab.server.inference.media import Images, markers, read_chat, read_images, shown
from locallab.server.inference.prompt import compile_constraint, prepare_chat, text_prompt
from locallab.server.streaming import EVENTS, LINES
from locallab.settings import ServerSettings


class NativeBody(Structured, kw_only=True):
    """Common fields of /generate and /chat. `max_length` counts tokens of the answer, without the prompt."""

    model_id: Annotated[str | None, Meta(description="name or alias of the model")] = None
    stream: Annotated[bool | None, Meta(description="stream the answer")] = None
    max_length: Annotated[int | None, Meta(description="maximum tokens of the answer; takes precedence over max_tokens")] = None
    max_time: Annotated[float | None, Meta(description="seconds after which the answer ends, as at its maximum of tokens")] = (
        None
    )

    LIMITS: ClassVar[tuple[str, ...]] = ("max_length", "max_tokens")


class PromptBody(NativeBody, kw_only=True):
    """With `chat_template`, a prompt is sent as a user's message through the model's template."""

    chat_template: Annotated[bool | None, Meta(description="true: send it to the model as a user's message")] = None

    def request(self, prompt: str, media: Mapping[str, Attachment] = MappingProxyType({})) -> ChatRequest:
        """Return the prompt as a user's message, to be answered without reasoning; it has the markers of `media`. Raises
        InvalidField."""
        messages = [Message("user", prompt)]
        return ChatRequest(messages=messages, answer=self.constraint(), reasoning=ReasoningOptions(False), media=media)

    async def prepare(
        self, loaded: Loaded, prompt: str, longest: int | None, media: Mapping[str, Attachment] = MappingProxyType({})
    ) -> tuple[list[Job], Turn | None]:
        """Return the job of a prompt with the markers of `media`, and its turn if it is sent as a message.

        `longest` limits the answer when the request does not. Raises InvalidField.
        """
        constraint = self.constraint()
        params = self.params(loaded.engine.info, longest, constraint=constraint)
        if self.chat_template:
            prepared = await prepare_chat(loaded, self.request(prompt, media), params)
            return prepared.jobs, prepared.turn
        await compile_constraint(loaded, constraint)
        return [(await text_prompt(loaded, prompt, tuple(media.values())), params)], None


class GenerateBody(PromptBody, kw_only=True):
    prompt: Annotated[str, Meta(description="the text to complete")]
    images: Images = None


class BatchBody(PromptBody, kw_only=True):
    prompts: Annotated[list[str], Meta(description="the texts to complete", extra_json_schema={"minItems": 1})]
    stream: Annotated[bool | None, Meta(description="not supported", extra_json_schema={"enum": [False, None]})] = None

    def check(self) -> None:
        """Raise InvalidField for no prompts, and for a stream."""
        if not self.prompts:
            raise InvalidField("prompts", "is empty")
        if self.stream:
            raise InvalidField("stream", "is not supported for several prompts: leave it out, or send them to /generate")


class NativeChatBody(NativeBody, kw_only=True):
    messages: Annotated[Any, Meta(description="the conversation, oldest first", extra_json_schema=MESSAGES)]
    images: Images = None

    def request(self, notes: list[str], media: Intake | None = None) -> ChatRequest:
        """Return the neutral request with its files in `media`, and note repairs. Raises InvalidField."""
        messages = normalize(self.messages, notes, media=media)
        if self.images:
            messages = shown(messages, markers(media, self.images))
        return ChatRequest(messages=messages, answer=self.constraint())


class Native:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Generating("/generate", self.generate, tag="native", body=GenerateBody, answer=Generated),
            Generating("/generate/batch", self.batch, tag="native", body=BatchBody, answer=GeneratedBatch, streams=False),
            Generating("/chat", self.chat, tag="native", body=NativeChatBody, answer=NativeChatAnswer),
        ]

    async def generate(self, request: Request) -> ASGIApp:
        """Complete a prompt without a template."""
        body = await read(request, GenerateBody)
        loaded = await lease(request, self._pool, body.model_id, strict=True)
        marks, media = await read_images(loaded, self._settings, body.images)
        jobs, turn = await body.prepare(loaded, marks + body.prompt, self._settings.completion_tokens, media)
        kind = TextLines if body.stream and await is_client(request, GENERATE) else NativeFormatter
        return await answer(request, loaded, jobs, kind(loaded.spec.id, turn), stream=body.stream, seconds=body.max_time)

    async def batch(self, request: Request) -> ASGIApp:
        """Complete several prompts, which are computed together."""
        body = await read(request, BatchBody)
        body.check()
        loaded = await lease(request, self._pool, body.model_id, strict=True)
        prepared = [await body.prepare(loaded, prompt, self._settings.completion_tokens) for prompt in body.prompts]
        jobs = [job for jobs, _ in prepared for job in jobs]
        formatter = BatchFormatter(loaded.spec.id, [turn for _, turn in prepared])
        return await whole_answer(request, loaded, jobs, formatter, seconds=body.max_time)

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a conversation through the model's chat template."""
        body = await read(request, NativeChatBody)
        loaded = await lease(request, self._pool, body.model_id, strict=True)
        params = body.params(loaded.engine.info, None)
        notes: list[str] = []
        prepared = await prepare_chat(loaded, await read_chat(request, loaded, self._settings, notes, body.request), params)
        lines = body.stream and await is_client(request, CHAT)
        kind, media_type = (ChatLines, LINES) if lines else (NativeChatFormatter, EVENTS)
        formatter = kind(Head.make("chatcmpl", loaded.spec.id), prepared.turn)
        return await answer(
            request,
            loaded,
            prepared.jobs,
            formatter,
            stream=body.stream,
            notes=notes,
            media_type=media_type,
            seconds=body.max_time,
        )
