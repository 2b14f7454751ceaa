"""Watchers of /api/v1/events, and what they watch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from locallab.pool import Pool
from locallab.server.dialects.native.activity import MemoryNow, Sampler, Snapshot
from tests.support.http_server import Served
from tests.support.wait import PATIENCE

Message = dict[str, Any]


@dataclasses.dataclass
class Watcher:
    """The messages of one stream; `raw` is what was sent."""

    response: httpx.Response
    raw: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._lines = self.response.iter_lines()

    def read(self) -> Message | None:
        """Return the next message, None at the end of the stream."""
        for line in self._lines:
            if line.startswith("data: "):
                self.raw.append(line[6:])
                return json.loads(line[6:])  # type: ignore[no-any-return]
        return None

    def until(self, holds: Callable[[Message], object]) -> Message:
        """Return the next message of which `holds` is true."""
        deadline = time.monotonic() + PATIENCE
        while message := self.read():
            if holds(message):
                return message
            assert time.monotonic() < deadline, message
        raise AssertionError("the stream has ended")


@contextlib.contextmanager
def watching(http: httpx.Client, headers: dict[str, str] | None = None) -> Iterator[Watcher]:
    with http.stream("GET", "/api/v1/events", headers=headers, timeout=PATIENCE) as response:
        assert response.status_code == 200, response.read()
        yield Watcher(response)


@contextlib.contextmanager
def asking(served: Served, *sent: dict[str, str] | None) -> Iterator[threading.Event]:
    """Keep a request of each of these running until the event is set, which happens at the end at the latest."""
    go = threading.Event()
    served.script(b"abc", go, b"def")

    def ask(headers: dict[str, str] | None) -> None:
        assert httpx.post(f"{served.url}/generate", json={"prompt": "hi"}, headers=headers, timeout=PATIENCE).status_code == 200

    with ThreadPoolExecutor() as clients:
        asked = [clients.submit(ask, each) for each in sent]
        try:
            yield go
        finally:
            go.set()
            for each in asked:
                each.result(PATIENCE)


def noted_samplers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the samplers of servers that are started from now on; `snapshots` counts what each has made."""
    found: list[Sampler] = []

    class Noted(Sampler):
        def __init__(self, pool: Pool) -> None:
            super().__init__(pool)
            self.snapshots = 0
            found.append(self)

        async def _snapshot(self, memory: MemoryNow) -> Snapshot:
            self.snapshots += 1
            return await super()._snapshot(memory)

    monkeypatch.setattr("locallab.server.dialects.native.routes.Sampler", Noted)
    return found
