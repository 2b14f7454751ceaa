"""A replica's server: it gives out tickets, and answers the calls that come with them by the server's own app."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.types import Message

from locallab.cluster.held import Held
from locallab.cluster.routing import Published, Route, Table
from locallab.cluster.wire import NUMBER, TICKET, Call, Frames, scope_of, ticket
from locallab.engine import Caller, TextEngine
from locallab.engine.request import Usage
from locallab.errors import RateLimited
from locallab.logs import request_id
from locallab.pool import Pool
from locallab.server.app import create_replica_app
from locallab.server.cluster import Replica, Told, What
from locallab.server.dialects.native.activity import Sampler
from locallab.server.dialects.native.metrics import Metrics
from locallab.server.inference.generation import SUBMITTED, Job
from locallab.server.middleware import Traffic
from locallab.server.usage import UsageFile, UsageLog
from locallab.server.websocket_protocol import RESTARTING
from locallab.settings import ServerSettings

PATIENCE = 30.0
"""Seconds that a ticket is good for."""

CHECK = 1.0
"""Seconds from one question to the engine about what it has to the next."""

UNWATCHED = 5.0
"""Seconds after which activity that nobody asks for is measured no more."""

ME = "this replica"

log = logging.getLogger(__name__)


class Ticket(msgspec.Struct, frozen=True):
    """Where a request may connect, once, and with which bytes."""

    host: str
    port: int
    number: bytes


class Address(msgspec.Struct, frozen=True, array_like=True):
    """Where a replica listens, and the secret of its tickets."""

    host: str
    port: int
    secret: bytes

    def ticket(self, number: bytes) -> Ticket:
        """Return the ticket of the request with this number."""
        return Ticket(self.host, self.port, ticket(number, self.secret))


class _Visit:
    """A request, from its visit or its connection, whichever comes first, to its end."""

    def __init__(self) -> None:
        self.called = False
        self.over = asyncio.Event()


class ReplicaServer:
    """Answers calls with the models of `pool`, which is closed at the end. Use it in one event loop."""

    def __init__(self, pool: Pool, settings: ServerSettings, name: str, model: str, host: str) -> None:
        self.name, self.model = name, model
        self._pool = pool
        self._settings = settings
        self._host = host
        self._visits: dict[bytes, _Visit] = {}
        self._held = Held()
        self._work = Table()
        self._work.set_replicas([ME])
        self._number = 0
        self._secret = secrets.token_bytes(TICKET)
        self._started = time.monotonic()
        self._spent = [0, 0]  # tokens of prompts, and those of them that were cached
        self._sampler = Sampler(pool)
        self._watched = 0.0
        self._metrics = Metrics(pool, Traffic(), UsageLog(UsageFile(Path(os.devnull)), 0))
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on any free port of the host, and give the pool its event loop."""
        self._pool.start(asyncio.get_running_loop())
        self._app = create_replica_app(self._pool, self._settings, _no_lifespan)
        self._server = await asyncio.start_server(self._connected, self._host, 0)
        self._port: int = self._server.sockets[0].getsockname()[1]
        self._keep(self._check())

    async def close(self) -> None:
        """Stop listening, end what runs, and close the pool."""
        self._stopping.set()
        self._sampler.stop()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.to_thread(self._pool.close)
        for close in self._app.state.closing:
            await close()

    @property
    def address(self) -> Address:
        return Address(self._host, self._port, self._secret)

    async def visit(self, route: Route, number: bytes) -> AsyncIterator[Ticket]:
        """Yield the ticket of the request with this number, and end when that has: until then the replica is not idle. A
        request whose router knows the address may connect before."""
        visit = self._visits.setdefault(number, _Visit())
        if not visit.called:
            self._work.send(number, route, ME)
        try:
            yield self.address.ticket(number)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(visit.over.wait(), PATIENCE)
            if visit.called:
                await visit.over.wait()
        finally:
            self._work.end(number)
            if not visit.called:
                self._visits.pop(number, None)

    @property
    def work(self) -> int:
        """The tokens of the work that it has, as routers reckon them."""
        return self._work.price(Route(), ME) - 1

    def publish(self) -> Published:
        """Return what routers are to know; the number rises with each call."""
        self._number += 1
        held = self._held.digests()
        self._work.publish(ME, Published(self._number, held))  # what is computed is work no more
        return Published(self._number, held, self.work)

    async def tell(self, what: What) -> Told:
        """Describe this replica, with its metrics or its activity where asked for."""
        stats = [each.engine.stats() for each in self._pool.loaded]
        replica = Replica(
            id=self.name,
            node=self._host,
            model=self.model,
            pid=os.getpid(),
            running=sum(each.running for each in stats),
            waiting=sum(each.waiting for each in stats),
            work_tokens=self.work,
            prompt_tokens=self._spent[0],
            cached_tokens=self._spent[1],
            prefixes=len(self._held.digests()),
            uptime_seconds=round(time.monotonic() - self._started, 3),
        )
        if what == "metrics":
            return Told(replica, metrics=self._metrics.exposition("", by_key=False)[0].decode())
        return Told(replica, activity=await self._activity() if what == "activity" else b"")

    @property
    def well(self) -> bool:
        """True while a model is loaded, or is reloaded by the next request."""
        return bool(self._pool.loaded or self._pool.loading or self._pool.default)

    async def _activity(self) -> bytes:
        self._watched = time.monotonic()
        if not self._sampler.works:
            self._sampler.start(self._stopping)
            await self._sampler.after(None, 1.0)
        snapshot = self._sampler.current
        return msgspec.msgpack.encode((snapshot.activity, snapshot.requests)) if snapshot else b""

    async def _check(self) -> None:
        """Ask the engines time and again what they have of the prompts that are published."""
        while True:
            await asyncio.sleep(CHECK)
            if self._sampler.works and time.monotonic() > self._watched + UNWATCHED:
                self._sampler.stop()
            loaded = next((each for each in self._pool.loaded if each.spec.id == self.model), None)
            prompts = self._held.doubtful()
            if not prompts or loaded is None or loaded.engine.info.kind != "text":
                continue
            asked = asyncio.wrap_future(loaded.text_engine.held([(each.tokens, each.owner) for each in prompts]))
            try:
                self._held.learn(prompts, await asyncio.wait_for(asked, 10 * CHECK))
            except Exception as error:
                log.debug("the engine does not say what it has: %s", error)

    def _keep(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = Frames(reader, writer)
        visit: _Visit | None = None
        number = b""
        try:
            shown = await asyncio.wait_for(reader.readexactly(TICKET), PATIENCE)
            number = shown[:NUMBER]
            if hmac.compare_digest(shown, ticket(number, self._secret)):
                visit = self._visits.setdefault(number, _Visit())
                if not visit.called:
                    visit.called = True
                    await self._answer(frames, number)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            pass  # nobody is there any more
        finally:
            if visit is not None:
                visit.over.set()
                self._work.end(number)
                asyncio.get_running_loop().call_later(PATIENCE, self._visits.pop, number, None)  # its visit may be on its way
            await frames.close()

    async def _answer(self, frames: Frames, number: bytes) -> None:
        """Run the app for one call. The front's end of the connection is the client: when it closes, that has left."""
        first = await frames.read()
        if first is None or first[0] != "call":
            return
        call = msgspec.convert(first[1], Call)
        self._work.send(number, call.route, ME)
        messages: asyncio.Queue[Message] = asyncio.Queue()
        counted: asyncio.Queue[RateLimited | None] = asyncio.Queue()
        listening = self._keep(_listen(frames, call, messages, counted))
        is_socket = call.scope["type"] == "websocket"
        gone: Message | None = None

        async def receive() -> Message:
            nonlocal gone
            if gone is None and is_socket:
                frames.put("receive")
            message = gone or await messages.get()
            if message["type"].endswith(".disconnect") and message.get("code") != RESTARTING:
                gone = message
            return message

        def send(message: Message) -> Awaitable[None]:  # not a coroutine: it runs for every token
            return frames.send("asgi", message)

        async def count() -> None:
            frames.put("count")
            if (refusal := await counted.get()) is not None:
                raise refusal

        def spend(model: str, usage: Usage) -> None:
            self._spent[0] += usage.prompt_tokens
            self._spent[1] += usage.cached_tokens
            frames.put("spend", (model, usage))

        scope = scope_of(call)
        state: dict[str, Any] = {"key": call.key, "role": call.role, "caller": call.caller, "spend": spend, "presented": []}
        scope["state"] = {**state, "count": count} if is_socket else state
        request_id.set(call.id)
        SUBMITTED.set(functools.partial(self._submitted, call.route))
        try:
            await self._app(scope, receive, send)
        except Exception:
            log.exception("%s failed", scope["path"])
            await _quietly(frames.send("failed"))
        else:
            await _quietly(frames.send("done"))
        finally:
            listening.cancel()

    def _submitted(self, route: Route, engine: TextEngine, jobs: Sequence[Job], caller: Caller) -> None:
        prompt, params = jobs[0]
        self._held.add(route, list(prompt), engine.owner(params, caller))


async def _listen(
    frames: Frames, call: Call, messages: asyncio.Queue[Message], counted: asyncio.Queue[RateLimited | None]
) -> None:
    while (frame := await frames.read()) is not None:
        kind, value = frame
        if kind == "asgi":
            messages.put_nowait(value)
        elif kind == "counted":
            counted.put_nowait(None if value is None else RateLimited(*value))
    code = {"code": 1006} if call.scope["type"] == "websocket" else {}
    messages.put_nowait({"type": f"{call.scope['type']}.disconnect", **code})
    counted.put_nowait(None)


async def _quietly(sending: Awaitable[None]) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        await sending


@contextlib.asynccontextmanager
async def _no_lifespan(app: Starlette) -> AsyncIterator[None]:
    yield
