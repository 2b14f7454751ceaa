"""The assistant over one WebSocket, /api/v1/assistant/stream.

In: `{"prompt", "task", ...}`, with the fields of the task's HTTP route and an `id` chosen by the client, or
`{"type": "cancel", "id"}`. Out: `{"type": "token", "text"}` for each text, then `{"type": "done", ...}`, or
`{"type": "error", "detail"}`; each has the `id`. A message that cannot be served gets an error, and the connection stays open.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Sequence
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
from locallab.server.inference.prompt import prepare_texts
from locallab.server.reply import cache_text, note_text
from locallab.server.roles import State, check_fetch
from locallab.server.streaming import dumps
from locallab.server.usage import Spend
from locallab.server.websocket_protocol import RESTARTING
from locallab.settings import ServerSettings

PATH = "/api/v1/assistant/stream"

AT_ONCE = 32
"""Maximum running requests of one connection."""

REFUSED = 1008
"""The code that closes a connection whose key is no longer valid."""

Id = str | int
_LONGEST_ID = 128


class Envelope(msgspec.Struct):
    """The fields that are read of every message, even one that is otherwise wrong."""

    id: Any = None
    type: Any = None


class SocketBody(AssistantBody, kw_only=True):
    id: Annotated[Id | None, Meta(description="returned in every event of this request")] = None
    type: Annotated[str | None, Meta(description="request, or none at all")] = None


@dataclasses.dataclass(eq=False, slots=True)
class Running:
    """A running request. `generation` is None until the engine has it."""

    id: Id | None
    question: Question
    notes: Sequence[str]
    task: asyncio.Task[None] | None = None
    generation: Generation | None = None
    stopped: bool = False

    def stop(self) -> None:
        """End it on the client's request; its last event has the figures."""
        self.stopped = True
        if self.generation is not None:
            self.generation.stop()
        elif self.task is not None:
            self.task.cancel()


class Conversation:
    """One connection: reads its messages, and answers each request in a task of its own.

    A client that does not read holds up its own answers only: their text is collected, and sent as one event.
    """

    def __init__(
        self, pool: Pool, settings: ServerSettings, templates: Templates, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._templates = templates
        self._state: State = scope["state"]
        self._spend: Spend = self._state["spend"]
        self._count = self._state.get("count")
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
                tasks = [each.task for each in self._running if each.task is not None]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            if code == REFUSED:
                await self._put({"type": "websocket.close", "code": REFUSED})

    async def _read(self) -> int:
        """Take messages until the client disconnects, and return the code.

        A server that stops sends a disconnect too, but running requests finish first.
        """
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
        """Serve a message. No message may end the connection. As over HTTP, wrong ones count as requests too."""
        text = message.get("text")
        data: bytes = message.get("bytes") or b"" if text is None else text.encode()
        envelope, wrong = self._envelope(data)
        try:
            if self._count is not None and envelope.type != "cancel":
                await self._count()
            if wrong is not None:
                raise wrong
            if envelope.type == "cancel":
                if envelope.id is None:
                    raise InvalidField("id", "is missing: which request to cancel")
                running = next((each for each in self._running if each.id == envelope.id), None)
                if running is None:
                    raise InvalidField("id", f"no request with the id {envelope.id!r} is under way")
                running.stop()
            elif envelope.type in (None, "request"):
                notes = list[str]()
                await self._begin(envelope.id, parse(data, SocketBody, notes), notes)
            else:
                raise InvalidField("type", f"unknown type {envelope.type!r}; known: request (or none at all), cancel")
        except Exception as error:
            report(error, f"WS {PATH}")
            await self._send_event(envelope.id, problem(error))

    def _envelope(self, data: bytes) -> tuple[Envelope, RequestError | None]:
        """Return the readable part of a message, and its error if it is wrong as a whole."""
        try:
            if len(data) > self._settings.max_body_mib << 20:
                raise RequestError(f"the message is larger than {self._settings.max_body_mib} MiB")
            envelope = parse(data, Envelope)
        except RequestError as error:
            return Envelope(), error
        match envelope.id:
            case None:
                return envelope, None
            case str(text) if len(text) <= _LONGEST_ID:
                return envelope, None
            case int(number) if type(number) is int and -(2**63) <= number < 2**63:
                return envelope, None
        wrong = InvalidField("id", f"expected an integer of 64 bits or a text of at most {_LONGEST_ID} characters")
        return Envelope(type=envelope.type), wrong

    async def _begin(self, request_id: Id | None, body: SocketBody, notes: Sequence[str]) -> None:
        if body.task not in TASKS:
            reason = "is missing" if body.task is None else f"unknown task {body.task!r}"
            raise InvalidField("task", f"{reason}; known: {', '.join(TASKS)}")
        if body.stream is False:
            raise InvalidField("stream", "a WebSocket always streams; POST the request for an answer in one piece")
        question = check(body, body.task)
        if self._restarting:
            raise EngineClosed("the server is stopping")
        if len(self._running) >= AT_ONCE:
            raise RequestError(f"{AT_ONCE} requests are under way on this connection, which is the most; wait for one to end")
        if request_id is not None and any(each.id == request_id for each in self._running):
            raise InvalidField("id", f"{request_id!r} is the id of a request under way")
        running = Running(request_id, question, notes)
        self._running.add(running)
        running.task = asyncio.create_task(self._serve(running))
        await asyncio.sleep(0)  # it has begun before anything can cancel it, and so sends its last event

    async def _serve(self, running: Running) -> None:
        with contextlib.suppress(ClientGone):
            try:
                last = await self._answer(running)
            finally:
                self._running.discard(running)  # first, so that its id is free once the client reads the end
            await self._send_event(running.id, last)
            if self._restarting:
                await self._close_if_idle()

    async def _answer(self, running: Running) -> dict[str, Any]:
        """Send the text of the answer; return the last event."""
        try:
            return done(await self._stream(running))
        except asyncio.CancelledError:
            if not running.stopped:
                raise
            usage = usage_body([Usage(0, 0, 0)])  # cancelled before a model had it
            figures = {"tokens_used": 0, "model": running.question.model, "finish_reason": "cancelled", "usage": usage}
            return done({"task": running.question.task, **figures, "code": None})
        except ClientGone:
            raise
        except Exception as error:
            report(error, f"WS {PATH}")
            return problem(error)

    async def _stream(self, running: Running) -> dict[str, Any]:
        await check_fetch(self._state, self._pool, running.question.model)
        async with self._pool.lease(running.question.model, strict=True, kind="text") as loaded:
            require(loaded, "text")
            prepared = await prepare_question(running.question, loaded, self._templates, self._settings)
            reader = AnswerReader(prepared)
            prompt, params = prepared.job[0], loaded.adapted(prepared.job[1])
            await prepare_texts(loaded, [(prompt, params)])
            generation = Generation(
                loaded.text_engine,
                [(prompt, params)],
                caller=self._state["caller"],
                urgent=prepared.urgent,
                spent=functools.partial(self._spend, loaded.name(params)),
            )
            with generation as running.generation:
                async for items in generation:
                    if text := reader.read(items):
                        await self._send_event(running.id, token(text))
                used = generation.cache
        notes = {"notes": note_text(running.notes)} if running.notes else {}
        return {**reader.summary(), **({"cache": cache_text(used)} if used else {}), **notes}

    async def _close_if_idle(self) -> None:
        if not self._running:
            await self._put({"type": "websocket.close", "code": RESTARTING, "reason": "the server is stopping"})

    async def _send_event(self, request_id: Id | None, body: dict[str, Any]) -> None:
        named = body if request_id is None else {"type": body["type"], "id": request_id, **body}
        await self._put({"type": "websocket.send", "text": dumps(named).decode()})

    async def _put(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # raised by servers once the client has gone
            raise ClientGone from None


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
