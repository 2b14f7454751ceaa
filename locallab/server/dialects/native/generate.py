"""LocalLab's own generating routes: /generate and /chat."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.chat import Message, normalize
from locallab.chat.turn import ChatRequest, ReasoningOptions, Turn
from locallab.engine.request import Usage
from locallab.pool import Pool
from locallab.server.dialects.answer_fields import Created, FinishReason, ModelName, NativeChoice, UsageFigures, usage_body
from locallab.server.dialects.openai.chat import message_body
from locallab.server.dialects.openai.stream import ChatFormatter, Head
from locallab.server.endpoint import Generating
from locallab.server.errors import detail_body
from locallab.server.fields.body import read
from locallab.server.fields.constraint import Structured
from locallab.server.fields.messages import MESSAGES
from locallab.server.inference.answer import answer
from locallab.server.inference.generation import Collector, Item
from locallab.server.inference.lease import lease
from locallab.server.inference.prompt import compile_constraint, prepare_chat, text_prompt
from locallab.server.inference.reader import Reader, plain_text, read_whole
from locallab.server.streaming import DONE, dumps, event
from locallab.settings import ServerSettings


class NativeBody(Structured, kw_only=True):
    """Common fields of /generate and /chat. `max_length` counts tokens of the answer, without the prompt."""

    model_id: Annotated[str | None, Meta(description="name or alias of the model")] = None
    stream: Annotated[bool | None, Meta(description="stream the answer")] = None
    max_length: Annotated[int | None, Meta(description="maximum tokens of the answer; takes precedence over max_tokens")] = None

    LIMITS: ClassVar[tuple[str, ...]] = ("max_length", "max_tokens")


class GenerateBody(NativeBody, kw_only=True):
    """With `chat_template`, the prompt is sent as a user's message through the model's template."""

    prompt: Annotated[str, Meta(description="the text to complete")]
    chat_template: Annotated[bool | None, Meta(description="true: send it to the model as a user's message")] = None

    def request(self) -> ChatRequest:
        """Return the prompt as a user's message, to be answered without reasoning. Raises InvalidField."""
        messages = [Message("user", self.prompt)]
        return ChatRequest(messages=messages, answer=self.constraint(), reasoning=ReasoningOptions(False))


class NativeChatBody(NativeBody, kw_only=True):
    messages: Annotated[Any, Meta(description="the conversation, oldest first", extra_json_schema=MESSAGES)]

    def request(self, notes: list[str]) -> ChatRequest:
        """Return the neutral request, and note repairs. Raises InvalidField."""
        return ChatRequest(messages=normalize(self.messages, notes), answer=self.constraint())


class Native:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Generating("/generate", self.generate, tag="native", body=GenerateBody, answer=Generated),
            Generating("/chat", self.chat, tag="native", body=NativeChatBody, answer=NativeChatAnswer),
        ]

    async def generate(self, request: Request) -> ASGIApp:
        """Complete a prompt without a template."""
        body = await read(request, GenerateBody)
        loaded = await lease(request, self._pool, body.model_id, strict=True)
        constraint = body.constraint()
        params = body.params(loaded.engine.info, self._settings.completion_tokens, constraint=constraint)
        turn = None
        if body.chat_template:
            prepared = await prepare_chat(loaded, body.request(), params)
            turn, jobs = prepared.turn, prepared.jobs
        else:
            await compile_constraint(loaded, constraint)
            jobs = [(await text_prompt(loaded, body.prompt), params)]
        return await answer(request, loaded, jobs, NativeFormatter(loaded.spec.id, turn), stream=body.stream)

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a conversation through the model's chat template."""
        body = await read(request, NativeChatBody)
        loaded = await lease(request, self._pool, body.model_id, strict=True)
        params = body.params(loaded.engine.info, None)
        notes: list[str] = []
        prepared = await prepare_chat(loaded, body.request(notes), params)
        formatter = NativeChatFormatter(Head.make("chatcmpl", loaded.spec.id), prepared.turn)
        return await answer(request, loaded, prepared.jobs, formatter, stream=body.stream, notes=notes)


class Generated(msgspec.Struct):
    """The answer of /generate."""

    response: Annotated[str, Meta(description="the text that follows the prompt")]
    model: ModelName
    finish_reason: FinishReason
    usage: UsageFigures


class NativeChatAnswer(msgspec.Struct):
    """The answer of /chat: OpenAI's shape with one choice."""

    id: str
    object: Literal["chat.completion"]
    created: Created
    model: ModelName
    choices: list[NativeChoice]
    finish_reason: FinishReason
    usage: UsageFigures


class NativeFormatter(Collector):
    """Formats `{"response": text}`; the last event has the finish reason and the usage instead of text."""

    def __init__(self, model: str, turn: Turn | None = None) -> None:
        """`turn` is that of a prompt sent as a message: reasoning is left out of its answer."""
        super().__init__()
        self._model = model
        self._turn = turn
        self._end: dict[str, Any] = {}
        self._reader = None if turn is None or turn.is_plain else Reader(turn)

    def whole(self) -> dict[str, Any]:
        [answer] = self.finished()
        text = answer.text if self._turn is None else read_whole(self._turn, answer)[0].text
        end = {"finish_reason": answer.finish_reason, "usage": usage_body([answer.usage])}
        return {"response": text, "model": self._model, **end}

    def encode(self, items: list[Item]) -> bytes:
        for _, news in items:
            if news.finish_reason is not None:
                self._end = {"finish_reason": news.finish_reason, "usage": usage_body([news.usage or Usage(0, 0, 0)])}
        if self._reader is None:
            texts = [news.text for _, news in items]
        else:
            texts = [plain_text(news.deltas) for news in self._reader.read(items)]
        return b"".join([b'data: {"response":' + dumps(text) + b"}\n\n" for text in texts if text])

    def end(self) -> bytes:
        return event({"response": "", "model": self._model, **self._end}) + DONE

    def fail(self, error: Exception) -> bytes:
        return event(detail_body(error))

    def ping(self) -> bytes:
        return event({"response": ""})


class NativeChatFormatter(ChatFormatter):
    """Formats OpenAI's chat; the usage is in the chunk that ends the answer, the finish reason also beside the choices."""

    def whole(self) -> dict[str, Any]:
        [answer] = self.finished()
        whole, end = read_whole(self.turn, answer)
        choice = {"index": 0, "message": message_body(whole), "finish_reason": end.finish_reason}
        ending = {"finish_reason": end.finish_reason, "usage": usage_body([answer.usage])}
        return self.head.body("chat.completion", [choice], **ending)

    def last(self, index: int, finish_reason: str, usage: Usage) -> bytes:
        return self.chunk(self.choice(index, "", finish_reason), usage=usage_body([usage]))
