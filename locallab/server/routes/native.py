"""LocalLab's own generating routes: /generate and /chat."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from msgspec import Meta
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.chat import Message, normalize
from locallab.chat.turn import ChatRequest, Thinking
from locallab.pool import Pool
from locallab.server.answers import Generated, NativeChatAnswer
from locallab.server.chunks import ChatChunks, Head, NativeChunks, usage_body
from locallab.server.endpoint import Generating
from locallab.server.fields.body import read
from locallab.server.fields.constraint import Structured
from locallab.server.fields.messages import MESSAGES
from locallab.server.inference.generation import Generation, collect
from locallab.server.inference.lease import lease
from locallab.server.inference.prompt import constrained, prepare_chat, text_prompt
from locallab.server.inference.reader import read_whole
from locallab.server.openai_chat import message_body
from locallab.server.reply import noted, reply
from locallab.server.streaming import EventStream
from locallab.settings import ServerSettings


class NativeBody(Structured, kw_only=True):
    """What /generate and /chat have in common. `max_length` counts tokens of the answer, without the prompt."""

    model_id: Annotated[str | None, Meta(description="the model to ask, by its name or an alias")] = None
    stream: Annotated[bool | None, Meta(description="send the answer while it is written")] = None
    max_length: Annotated[int | None, Meta(description="most tokens of the answer; comes before max_tokens")] = None

    LIMITS: ClassVar[tuple[str, ...]] = ("max_length", "max_tokens")


class GenerateBody(NativeBody, kw_only=True):
    """`chat_template` true sends the prompt as a user's message, through the model's template."""

    prompt: Annotated[str, Meta(description="the text to go on from")]
    chat_template: Annotated[bool | None, Meta(description="true: put it to the model as a user's message")] = None


class NativeChatBody(NativeBody, kw_only=True):
    messages: Annotated[Any, Meta(description="the conversation, oldest first", extra_json_schema=MESSAGES)]


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
        """Complete a prompt as it stands."""
        body = await read(request, GenerateBody)
        loaded = await lease(request, self._pool, body.model_id, strict=True)
        params = body.params(loaded.engine.info.n_vocab, self._settings.completion_tokens)
        turn = None
        if body.chat_template:
            as_chat = ChatRequest(messages=[Message("user", body.prompt)], answer=body.constraint(), thinking=Thinking(False))
            asked = await prepare_chat(loaded, as_chat, params)
            turn, jobs = asked.turn, asked.jobs
        else:
            params = await constrained(loaded, params, body.constraint())
            jobs = [(await text_prompt(loaded, body.prompt), params)]
        if body.stream:
            return EventStream(Generation(loaded.engine, jobs), NativeChunks(loaded.spec.id, turn))
        [answer] = await collect(loaded.engine, jobs, request.receive)
        end = {"finish_reason": answer.finish_reason, "usage": usage_body([answer.usage])}
        text = answer.text if turn is None else read_whole(turn, answer)[0].text
        return reply({"response": text, "model": loaded.spec.id, **end})

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a conversation, through the model's chat template."""
        body = await read(request, NativeChatBody)
        loaded = await lease(request, self._pool, body.model_id, strict=True)
        params = body.params(loaded.engine.info.n_vocab, None)
        notes: list[str] = []
        chat = ChatRequest(messages=normalize(body.messages, notes), answer=body.constraint())
        asked = await prepare_chat(loaded, chat, params)
        head = Head.make("chatcmpl", loaded.spec.id)
        if body.stream:
            return noted(
                EventStream(Generation(loaded.engine, asked.jobs), ChatChunks(head, asked.turn, finish_usage=True)), notes
            )
        [answer] = await collect(loaded.engine, asked.jobs, request.receive)
        said, end = read_whole(asked.turn, answer)
        choice = {"index": 0, "message": message_body(said), "finish_reason": end.finish_reason}
        ending = {"finish_reason": end.finish_reason, "usage": usage_body([answer.usage])}
        return noted(reply(head.body("chat.completion", [choice], **ending)), notes)
