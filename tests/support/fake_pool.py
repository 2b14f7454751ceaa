"""A pool of fake engines, and waiting in tests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from locallab.chat.known_templates import CHATML
from locallab.engine.request import SamplingParams, TokenEvent
from locallab.models.store import Store
from locallab.pool import Lease, Loaded, Pool
from locallab.settings import EngineSettings
from tests.support.fake_engine import FakeEngine, FakeMemory, registry
from tests.support.wait import PATIENCE, until


async def soon(holds: Callable[[], bool]) -> None:
    """Wait without holding up the event loop."""
    await asyncio.to_thread(until, holds)


class Made:
    """A pool that keeps its engines for inspection. There is memory for `room` of them at once."""

    def __init__(self, folder: Path, layers: Any = (), *, room: int = 10, names: tuple[str, ...] = (), **options: Any) -> None:
        self.engines: list[FakeEngine] = []
        self.template: str | None = CHATML
        self.memory = FakeMemory(room, 1, lambda: list(self.engines))
        self.gates: dict[str, threading.Event] = {}
        self.loading = threading.Semaphore(1)
        options = {"engine": self.make, "memory": self.memory, "grace": 0.0, **options}
        self.pool = Pool(registry(folder, *names), Store(folder / "store"), layers, **options)

    def make(self, path: Path, settings: EngineSettings, post: Any) -> Any:
        assert self.loading.acquire(blocking=False), "two loads at once"
        try:
            if gate := self.gates.get(path.stem.partition("-")[0]):
                assert gate.wait(PATIENCE)
            self.engines.append(FakeEngine(path, settings, post, template=self.template))
            return self.engines[-1]
        finally:
            self.loading.release()

    def engine(self, name: str) -> FakeEngine:
        """Return the newest engine of that model."""
        return [engine for engine in self.engines if engine.info.path.stem.startswith(name)][-1]

    def hold(self, name: str) -> threading.Event:
        """Make loads of this model wait for the event."""
        gate = self.gates[name] = threading.Event()
        return gate

    @contextlib.asynccontextmanager
    async def asking(self, model_id: str | None, *, strict: bool = True) -> AsyncIterator[Lease]:
        lease = self.pool.lease(model_id, strict=strict)
        try:
            yield lease
        finally:
            lease.release()

    async def answer(self, model_id: str | None) -> str:
        """Return the id of the model that answered a short request."""
        async with self.pool.lease(model_id, strict=True) as loaded:
            events: asyncio.Queue[TokenEvent] = asyncio.Queue()
            loop = asyncio.get_running_loop()
            loaded.engine.submit([1], SamplingParams(), lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
            while (event := await events.get()).finish_reason is None:
                pass
            assert event.finish_reason == "stop"
            return loaded.spec.id


@contextlib.contextmanager
def making(folder: Path, *arguments: Any, **options: Any) -> Iterator[Made]:
    made = Made(folder, *arguments, **options)
    try:
        yield made
    finally:
        for gate in made.gates.values():
            gate.set()
        made.pool.close()


def name_of(loaded: Loaded | None) -> str | None:
    return loaded.spec.id if loaded else None
