"""The front's relay: requests that have passed its checks go to a replica, and its answers come back as they are.

A request is sent again while nothing of its answer has come: a replica that dies, or that leaves, loses none. An answer that
has begun ends as its dialect ends one that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.cluster import wire
from locallab.cluster.lists import merged
from locallab.cluster.prefixes import digests, scope_of, text_of
from locallab.cluster.replica import Ticket
from locallab.cluster.routing import Route
from locallab.errors import EngineClosed, LocalLabError, ModelsFixed, RateLimited, ReplicaGone, RequestError
from locallab.logs import request_id
from locallab.server.cluster import Cluster
from locallab.server.dialects.dialect import Dialect
from locallab.server.errors import respond
from locallab.server.inference.aside import aside
from locallab.server.inference.generation import GenerationUsage
from locallab.server.reply import reply
from locallab.server.streaming import EVENTS, LINES

TRIES = 5
"""Replicas that a request is sent to before its client hears of it."""

OWN = {
    "/",
    "/page/{file}",
    "/page/clients.md",
    "/docs",
    "/openapi.json",
    "/page/{name}",
    "/api/v1/me",
    "/api/v1/render",
    "/api/v1/replay",
    "/api/v1/usage",
    "/api/v1/events",
    "/metrics",
    "/system/info",
    "/health",
    "/health/ready",
    "/health/live",
}
"""Routes that the front answers by itself."""

CHANGING = {"/models/load", "/models/unload", "/api/pull", "/api/delete", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
"""Routes that change which models there are."""

log = logging.getLogger(__name__)


LISTS = {"/v1/models", "/api/tags", "/api/ps", "/models/available", "/api/v1/models/available"}
"""Routes that list models."""


class Placement(Protocol):
    """Chooses replicas. `models` has the ids of the models that have any, the default one first."""

    @property
    def models(self) -> Sequence[str]: ...

    def place(self, model: str, route: Route, *, known: bool) -> contextlib.AbstractAsyncContextManager[Ticket]:
        """Return a context manager with a ticket of a replica of this model, held until the request has ended. With `known`, a
        replica whose address is known need not answer first. Raises ReplicaGone where none answers."""
        ...


class Replicas(Placement, Cluster, Protocol):
    """Places requests, and tells of those who answer them."""


class Relay:
    """Innermost middleware of a front. `served` has the name of the model that a request asks for, "" for none, as the name of
    the one whose replicas answer it, and the adapter."""

    def __init__(self, app: ASGIApp, placement: Replicas, served: Callable[[str], tuple[str, str]]) -> None:
        self._app = app
        self._placement = placement
        self._served = served
        self._closed = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, self._until_closed(receive), send)
            return
        route = scope["state"]["route"]
        if route is None or route in OWN:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._relay_socket(scope, receive, send)
        elif route in LISTS and scope["method"] == "GET" and len(self._placement.models) > 1:
            await self._list(scope, receive, send)
        else:
            await self._relay(scope, receive, send)

    def _until_closed(self, receive: Receive) -> Receive:
        """Return a `receive` of the lifespan whose last message ends what runs: its clients have had the server's grace."""

        async def closing() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._closed.set()
                await asyncio.sleep(0)
            return message

        return closing

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            return  # the client has left
        try:
            model, route = await self._route(scope, body)
        except LocalLabError as error:
            await respond(HTTPConnection(scope), error)(scope, receive, send)
            return
        await self._ask(model, route, scope, body, receive, send)

    async def _list(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with what a replica of each model lists, and with the front's registry for models that have none now."""
        await _body(receive)
        awake = {each.replica.model for each in await self._placement.ask()}
        answers: dict[str, Any] = {}
        for model in self._placement.models:
            if model in awake:
                answer = _Kept()
                await self._ask(model, Route(), scope, b"", receive, answer)
                answers[model] = answer.decoded()
        own = _Kept()
        await self._app(scope, receive, own)
        listed = merged(answers, own.decoded(), self._placement.models)
        await reply(listed)(scope, receive, send)

    async def _ask(self, model: str, route: Route, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Have a replica of the model answer, another one while nothing has come."""
        started: Message | None = None

        async def relay(message: Message) -> None:
            nonlocal started
            started = started or message
            await send(message)

        try:
            call = wire.call_of(scope, route, request_id.get())
            for attempt in range(TRIES):
                try:
                    await self._try(call, body, model, attempt, scope, receive, relay)
                    return
                except ReplicaGone as error:
                    log.warning("%s %s: %s", scope["method"], scope["path"], error)
                    if started is not None or attempt == TRIES - 1:
                        raise
        except LocalLabError as error:
            if started is None:
                await respond(HTTPConnection(scope), error)(scope, receive, send)
                return
            await _end(scope, started, error, send)

    async def _route(self, scope: Scope, body: bytes) -> tuple[str, Route]:
        """Return the model whose replicas are asked, and what the router is told. What cannot be read is for a replica to
        refuse. Raises ModelsFixed."""
        if scope["state"]["route"] in CHANGING:
            raise ModelsFixed
        fields: Mapping[str, Any] = {}
        with contextlib.suppress(msgspec.DecodeError, RequestError, RecursionError):
            decoded = await aside(len(body), lambda _: msgspec.json.decode(body)) if body[:1] == b"{" else {}
            fields = decoded if isinstance(decoded, dict) else {}
        template, path = scope["state"]["route"], scope["path"]
        named = path.removeprefix(template.partition("{")[0]) if "{" in template else ""
        name = fields.get("model") or fields.get("model_id") or named
        model, adapter = self._served(name if isinstance(name, str) else "")
        text = text_of(fields)
        owner = scope["state"]["caller"].owner
        return model, Route(digests(scope_of(model, adapter, owner), text), len(text))

    async def _try(
        self, call: wire.Call, body: bytes, model: str, attempt: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send the call to one replica, and its answer to the client. Raises ReplicaGone."""
        async with self._placement.place(model, call.route, known=not attempt) as ticket:
            frames = await wire.connect(ticket.host, ticket.port, ticket.number)
            try:
                await _to_replica(frames, "call", call)
                await _to_replica(frames, "asgi", {"type": "http.request", "body": body, "more_body": False})
                answering = asyncio.ensure_future(_answer(frames, scope, send))
                leaving = asyncio.ensure_future(_left(receive))
                closing = asyncio.ensure_future(self._closed.wait())
                try:
                    await asyncio.wait((answering, leaving, closing), return_when=asyncio.FIRST_COMPLETED)
                    if answering.done():
                        answering.result()
                    elif closing.done():
                        raise EngineClosed("the server is stopping")
                finally:
                    await _cancelled(answering, leaving, closing)
            finally:
                frames.cut()

    async def _relay_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Join a WebSocket and one replica: what runs on it ends with that."""
        model, _ = self._served("")
        call = wire.call_of(scope, Route(), request_id.get())
        accepted = False
        pulls: set[asyncio.Task[None]] = set()

        async def relay(message: Message) -> None:
            nonlocal accepted
            accepted = accepted or message["type"] == "websocket.accept"
            await send(message)

        async def pull() -> None:
            with contextlib.suppress(ReplicaGone):
                await _to_replica(frames, "asgi", await receive())

        def wanted() -> None:
            task = asyncio.ensure_future(pull())
            pulls.add(task)
            task.add_done_callback(pulls.discard)

        error: ReplicaGone | None = None
        for attempt in range(TRIES):
            try:
                async with self._placement.place(model, Route(), known=not attempt) as ticket:
                    frames = await wire.connect(ticket.host, ticket.port, ticket.number)
                    try:
                        await _to_replica(frames, "call", call)
                        await _answer(frames, scope, relay, wanted)
                        return
                    finally:
                        frames.cut()
                        await _cancelled(*pulls)
            except ReplicaGone as gone:
                error = gone
                log.warning("WS %s: %s", scope["path"], gone)
                if accepted or pulls:
                    break
        dialect: Dialect = scope["state"]["dialect"]
        if accepted and error is not None:
            await send({"type": "websocket.send", "text": dialect.ending(error, "").decode()})
        await send({"type": "websocket.close", "code": 1011, "reason": "the replica is gone"})


class _Kept:
    """Keeps a response instead of sending it."""

    def __init__(self) -> None:
        self._status = 0
        self._body = b""

    async def __call__(self, message: Message) -> None:
        self._status = self._status or message.get("status", 0)
        self._body += message.get("body", b"")

    def decoded(self) -> Any:
        """Return the JSON of an answer, None for a failure."""
        return msgspec.json.decode(self._body) if self._status == 200 else None


async def _answer(frames: wire.Frames, scope: Scope, send: Send, wanted: Callable[[], None] = lambda: None) -> None:
    """Pass on what a replica answers until it is done. Raises ReplicaGone, and RuntimeError where its app has failed."""
    state = scope["state"]
    while (frame := await frames.read()) is not None:
        kind, value = frame
        if kind == "asgi":
            await send(value)
        elif kind == "spend":
            model, usage = value
            state["spend"](model, msgspec.convert(usage, GenerationUsage))
        elif kind == "receive":
            wanted()
        elif kind == "count":
            refusal: RateLimited | None = None
            try:
                await state["count"]()
            except RateLimited as error:
                refusal = error
            told = refusal and (refusal.rule, refusal.limit, refusal.reset, refusal.retry_after, refusal.remaining)
            await _to_replica(frames, "counted", told)
        elif kind == "failed":
            raise RuntimeError("the replica's app has failed; its log says why")
        else:
            return
    raise ReplicaGone("its connection broke off")


async def _to_replica(frames: wire.Frames, kind: wire.Kind, value: object) -> None:
    try:
        await frames.send(kind, value)
    except (OSError, RuntimeError) as error:
        raise ReplicaGone(f"its connection broke off: {error}") from None


async def _body(receive: Receive) -> bytes | None:
    """Return the whole body, None if the client leaves before. Raises what the middleware that reads it does."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _end(scope: Scope, start: Message, error: LocalLabError, send: Send) -> None:
    """End an answer that has begun: a stream by its dialect's event for failures, any other by cutting the connection."""
    types = [value.partition(b";")[0].decode() for name, value in start.get("headers", ()) if name == b"content-type"]
    if types not in ([EVENTS], [LINES]):
        raise error
    dialect: Dialect = scope["state"]["dialect"]
    ending = dialect.ending(error, types[0])
    await send({"type": "http.response.body", "body": ending, "more_body": False})
