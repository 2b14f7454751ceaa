"""One conversation over a WebSocket whose other side is played here: readers that are slow, servers that stop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from locallab.chat.tasks import Templates
from locallab.models.store import Store
from locallab.pool import Pool
from locallab.server.conversation import REFUSED, Conversation
from locallab.server.websocket_protocol import RESTARTING
from locallab.settings import EngineSettings, ServerSettings
from tests.fakes import FakeEngine, Step, registry

PATIENCE = 30.0
Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The client and the server around a conversation. While `reading` is not set, nothing more can be sent."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reading = asyncio.Event()
        self.reading.set()
        self.gone = False

    async def send(self, message: dict[str, Any]) -> None:
        await self.reading.wait()
        if self.gone:
            raise BrokenPipeError
        self.outgoing.put_nowait(message)

    def say(self, **message: Any) -> None:
        self.incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    def ask(self, **message: Any) -> None:
        self.say(**{"prompt": "some words", "task": "chat", **message})

    def end(self, code: int) -> None:
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": code})

    async def heard(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.outgoing.get(), PATIENCE)

    async def event(self) -> dict[str, Any]:
        return dict(json.loads((await self.heard())["text"]))

    async def closed(self) -> int:
        message = await self.heard()
        assert message["type"] == "websocket.close"
        return int(message["code"])

    async def until(self, holds: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not holds():
                await asyncio.sleep(0.002)

        await asyncio.wait_for(wait(), PATIENCE)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    def make(path: Path, settings: EngineSettings, deliver: Any) -> Any:
        return FakeEngine(path, settings, deliver, context=8192)

    pool = Pool(registry(tmp_path), Store(tmp_path / "store"), engine=make, grace=0.0)
    pool.load_now("tiny:1b")
    yield pool
    pool.close()


def converse(pool: Pool, script: Script, *steps: Step) -> None:
    """Plays `script` against a conversation whose model says `steps`; at the end the conversation must have ended too."""

    async def run() -> None:
        pool.start(asyncio.get_running_loop())
        assert pool.current is not None
        engine: Any = pool.current.engine
        engine.script = lambda prompt, params: list(steps)
        peer = Peer(engine)
        peer.incoming.put_nowait({"type": "websocket.connect"})
        talk = Conversation(pool, ServerSettings(), Templates.load(), {}, peer.incoming.get, peer.send)
        task = asyncio.create_task(talk.run())
        assert (await peer.heard())["type"] == "websocket.accept"
        await script(peer)
        await asyncio.wait_for(task, PATIENCE)
        assert len(asyncio.all_tasks()) == 1
        await peer.until(lambda: engine.stats().running == 0)

    asyncio.run(run())


def test_what_comes_while_the_reader_is_slow_is_one_event(pool: Pool) -> None:
    go, end = threading.Event(), threading.Event()

    async def script(peer: Peer) -> None:
        peer.ask()
        assert (await peer.event())["text"] == "a"
        peer.reading.clear()
        go.set()
        await peer.until(lambda: peer.engine.totals.completion_tokens == 202)
        assert peer.outgoing.empty()
        end.set()
        peer.reading.set()
        text = ""
        events = 0
        while (event := await peer.event())["type"] == "token":
            text += event["text"]
            events += 1
        assert text == "b" * 201 + "c" and events <= 3 and event["tokens_used"] == 203
        peer.end(1000)

    converse(pool, script, b"a", go, *[b"b"] * 201, end, b"c")


def test_a_slow_reader_that_leaves(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.ask()
        assert (await peer.event())["text"] == "a"
        peer.reading.clear()
        peer.end(1001)
        await peer.until(lambda: peer.engine.cancelled != [])

    converse(pool, script, b"a", threading.Event())


@pytest.mark.parametrize("asked", [False, True])
def test_a_client_that_has_gone_when_it_is_told(pool: Pool, asked: bool) -> None:
    go = threading.Event()

    async def script(peer: Peer) -> None:
        if asked:
            peer.ask()
            await peer.event()
        peer.gone = True
        go.set()
        peer.say(type="nonsense")  # is answered by the reader itself

    converse(pool, script, b"a", go, b"b")


def test_a_server_that_stops_lets_requests_end(pool: Pool) -> None:
    go = threading.Event()

    async def script(peer: Peer) -> None:
        peer.ask(id=1)
        assert (await peer.event())["text"] == "a"
        peer.end(RESTARTING)
        peer.ask(id=2)
        assert await peer.event() == {"type": "error", "id": 2, "detail": "the server is stopping"}
        assert peer.outgoing.empty()
        go.set()
        while (event := await peer.event())["type"] == "token":
            pass
        assert (event["type"], event["finish_reason"]) == ("done", "stop")
        assert await peer.closed() == RESTARTING
        peer.end(RESTARTING)  # as servers confirm a close

    converse(pool, script, b"a", go, b"b")


def test_a_server_that_stops_lets_requests_be_cancelled(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.ask(id=1)
        await peer.event()
        peer.end(RESTARTING)
        peer.say(type="cancel", id=1)
        assert (await peer.event())["finish_reason"] == "cancelled"
        assert await peer.closed() == RESTARTING
        peer.end(RESTARTING)

    converse(pool, script, b"a", threading.Event())


def test_a_server_that_stops_closes_what_is_idle(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.end(RESTARTING)
        assert await peer.closed() == RESTARTING
        peer.end(RESTARTING)

    converse(pool, script)


def test_a_server_that_stops_and_a_client_that_leaves(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.ask()
        await peer.event()
        peer.end(RESTARTING)
        peer.end(1006)
        await peer.until(lambda: peer.engine.cancelled != [])

    converse(pool, script, b"a", threading.Event())


def test_an_engine_that_closes_ends_requests_with_an_error(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.ask(id=1)
        await peer.event()
        peer.end(RESTARTING)
        await asyncio.to_thread(pool.close)
        error = await peer.event()
        assert (error["type"], error["id"]) == ("error", 1) and "closed" in error["detail"]
        assert await peer.closed() == RESTARTING
        peer.end(RESTARTING)

    converse(pool, script, b"a", threading.Event())


def test_a_key_that_is_not_valid_any_more_closes_the_connection(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.ask()
        await peer.event()
        peer.end(REFUSED)
        assert await peer.closed() == REFUSED
        assert peer.engine.cancelled != []

    converse(pool, script, b"a", threading.Event())
