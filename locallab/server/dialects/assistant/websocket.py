"""What the assistant and a client say to each other over one WebSocket, /api/v1/assistant/stream.

In: `{"prompt", "task", ...}`, with the fields of the task's HTTP route and an `id` of the client's choice, or
`{"type": "cancel", "id"}`. Out: `{"type": "token", "text"}` as often as there is text, then `{"type": "done", ...}`, or
`{"type": "error", "detail"}`; the `id` is in each. A message that cannot be served gets an error, and the connection stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send

from locallab.engine.request import Usage
from locallab.errors import EngineClosed, InvalidField, RequestError
from locallab.pool import Pool
from locallab.server.dialects.answer_fields import usage_body
from locallab.server.dialects.assistant.answer import AnswerReader, done, problem, token
from locallab.server.dialects.assistant.request import AssistantBody, Question, check, prepare_question
from locallab.server.dialects.assistant.templates import TASKS, Templates
from locallab.server.errors import report
from locallab.server.fields.body import parse
from locallab.server.inference.generation import ClientGone, Generation
from locallab.server.inference.lease import require
from locallab.server.streaming import dumps
from locallab.server.websocket_protocol import RESTARTING
from locallab.settings import ServerSettings

PATH = "/api/v1/assistant/stream"

AT_ONCE = 32
"""Requests that one connection may have under way."""

REFUSED = 1008
"""The code with which a connection is closed whose key is not valid any more."""

Id = str | int
_LONGEST_ID = 128


class Envelope(msgspec.Struct):
    """What every message may have, whatever else is right or wrong with it."""

    id: Any = None
    type: Any = None


class SocketBody(AssistantBody, kw_only=True):
    id: Annotated[Id | None, Meta(description="comes back in every event of this request")] = None


@dataclasses.dataclass(eq=False, slots=True)
class Running:
    """A request under way. `generation` is None until the engine has it."""

    id: Id | None
    question: Question
    task: asyncio.Task[None] | None = None
    generation: Generation | None = None
    stopped: bool = False

    def stop(self) -> None:
        """Ends it as the client asked; its last event tells what it took."""
        self.stopped = True
        if self.generation is not None:
            self.generation.stop()
        elif self.task is not None:
            self.task.cancel()


class Conversation:
    """One connection: reads its messages, and answers each request in a task of its own.

    A client that does not read holds up its own answers only: what the model says meanwhile waits, and goes out as one event.
    """

    def __init__(
        self, pool: Pool, settings: ServerSettings, templates: Templates, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._templates = templates
        self._count = scope.get("state", {}).get("count")
        self._receive = receive
        self._send = send
        self._running: set[Running] = set()
        self._restarting = False

    async def run(self) -> None:
        await self._receive()  # websocket.connect
        with contextlib.suppress(ClientGone):
            try:
                await self._put({"type": "websocket.accept"})
                code = await self._read()
            finally:
                await self._abandon()
            if code == REFUSED:
                await self._put({"type": "websocket.close", "code": REFUSED})

    async def _read(self) -> int:
        """Takes messages until the client has gone, and returns the code. A server that stops says so in the same way, but lets
        what runs end first."""
        while True:
            message = await self._receive()
            if message["type"] != "websocket.disconnect":
                await self._take(message)
            elif message.get("code") == RESTARTING and not self._restarting:
                self._restarting = True
                await self._close_if_idle()
            else:
                return message.get("code") or 0

    async def _take(self, message: Message) -> None:
        """Nothing that a client sends may end the connection. As over HTTP, what is wrong counts as a request too."""
        text = message.get("text")
        data: bytes = message.get("bytes") or b"" if text is None else text.encode()
        envelope, wrong = self._opened(data)
        try:
            if self._count is not None and envelope.type != "cancel":
                await self._count()
            if wrong is not None:
                raise wrong
            if envelope.type == "cancel":
                self._stop(envelope.id)
            elif envelope.type in (None, "request"):
                await self._begin(envelope.id, parse(data, SocketBody))
            else:
                raise InvalidField("type", f"unknown type {envelope.type!r}; known: request (or none at all), cancel")
        except Exception as error:
            report(error, f"WS {PATH}")
            await self._tell(envelope.id, problem(error))

    def _opened(self, data: bytes) -> tuple[Envelope, RequestError | None]:
        """What can be read of a message, and what is wrong with the whole of it."""
        try:
            if len(data) > self._settings.max_body_mib << 20:
                raise RequestError(f"the message is larger than {self._settings.max_body_mib} MiB")
            envelope = parse(data, Envelope)
        except RequestError as error:
            return Envelope(), error
        if _is_id(envelope.id):
            return envelope, None
        wrong = InvalidField("id", f"expected an integer of 64 bits or a text of at most {_LONGEST_ID} characters")
        return Envelope(type=envelope.type), wrong

    async def _begin(self, given: Id | None, body: SocketBody) -> None:
        if body.task not in TASKS:
            raise InvalidField("task", _unknown_task(body.task))
        if body.stream is False:
            raise InvalidField("stream", "a WebSocket always streams; POST the request for an answer in one piece")
        question = check(body, body.task)
        if self._restarting:
            raise EngineClosed("the server is stopping")
        if len(self._running) >= AT_ONCE:
            raise RequestError(f"{AT_ONCE} requests are under way on this connection, which is the most; wait for one to end")
        if given is not None and any(each.id == given for each in self._running):
            raise InvalidField("id", f"{given!r} is the id of a request under way")
        running = Running(given, question)
        self._running.add(running)
        running.task = asyncio.create_task(self._serve(running))
        await asyncio.sleep(0)  # it has begun before anything can cancel it, and so will tell its end

    def _stop(self, given: Id | None) -> None:
        if given is None:
            raise InvalidField("id", "is missing: which request to cancel")
        running = next((each for each in self._running if each.id == given), None)
        if running is None:
            raise InvalidField("id", f"no request with the id {given!r} is under way")
        running.stop()

    async def _serve(self, running: Running) -> None:
        with contextlib.suppress(ClientGone):
            try:
                last = await self._answer(running)
            finally:
                self._running.discard(running)  # first, so that its id is free once the client reads the end
            await self._tell(running.id, last)
            if self._restarting:
                await self._close_if_idle()

    async def _answer(self, running: Running) -> dict[str, Any]:
        """Sends what the model says; returns the last event."""
        try:
            return done(await self._stream(running))
        except asyncio.CancelledError:
            if not running.stopped:
                raise
            return done(_nothing(running.question))
        except ClientGone:
            raise
        except Exception as error:
            report(error, f"WS {PATH}")
            return problem(error)

    async def _stream(self, running: Running) -> dict[str, Any]:
        async with self._pool.lease(running.question.model, strict=True, kind="text") as loaded:
            require(loaded, "text")
            asked = await prepare_question(running.question, loaded, self._templates, self._settings.completion_tokens)
            telling = AnswerReader(asked)
            with Generation(loaded.engine, [asked.job], urgent=asked.urgent) as running.generation:
                async for items in running.generation:
                    if text := telling.read(items):
                        await self._tell(running.id, token(text))
        return telling.summary()

    async def _abandon(self) -> None:
        """Nobody reads any more: ends all that runs."""
        tasks = [each.task for each in self._running if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _close_if_idle(self) -> None:
        if not self._running:
            await self._put({"type": "websocket.close", "code": RESTARTING, "reason": "the server is stopping"})

    async def _tell(self, given: Id | None, body: dict[str, Any]) -> None:
        named = body if given is None else {"type": body["type"], "id": given, **body}
        await self._put({"type": "websocket.send", "text": dumps(named).decode()})

    async def _put(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # what servers raise once the client has gone
            raise ClientGone from None


def _is_id(given: Any) -> bool:
    if isinstance(given, str):
        return len(given) <= _LONGEST_ID
    return given is None or (type(given) is int and -(2**63) <= given < 2**63)


def _unknown_task(task: str | None) -> str:
    reason = "is missing" if task is None else f"unknown task {task!r}"
    return f"{reason}; known: {', '.join(TASKS)}"


def _nothing(question: Question) -> dict[str, Any]:
    """What there is to say of a request that was cancelled before a model had it."""
    usage = usage_body([Usage(0, 0, 0)])
    figures = {"tokens_used": 0, "model": question.model, "finish_reason": "cancelled", "usage": usage, "code": None}
    return {"task": question.task, **figures}


class Socket:
    """The route: an ASGI application of its own."""

    def __init__(self, pool: Pool, settings: ServerSettings, templates: Templates) -> None:
        self._pool = pool
        self._settings = settings
        self._templates = templates

    def routes(self) -> list[BaseRoute]:
        return [WebSocketRoute(PATH, self)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Conversation(self._pool, self._settings, self._templates, scope, receive, send).run()
