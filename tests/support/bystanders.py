"""Clients who do nothing wrong while others attack: two read streams, one polls /health.

`python bystanders.py URL` writes a JSON object for each line that it reads: the worst seconds since the last one of an answer
of /health, and between two events of a stream; the waiting that still goes on counts. It is a process of its own, so that
what the attackers do to theirs delays no measurement. `Bystanders` starts it and asks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

STREAMS = 2
POLL = 0.05
STORY = {"prompt": "Once upon a time", "max_length": 1000, "ignore_eos": True, "stream": True}


class Stopwatch:
    """The longest time between two ticks since it was last read."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._worst = 0.0

    def tick(self) -> None:
        now = time.monotonic()
        self._worst, self._since = max(self._worst, now - self._since), now

    def read(self) -> float:
        worst, self._worst = max(self._worst, time.monotonic() - self._since), 0.0
        return worst


async def poll(http: httpx.AsyncClient, watch: Stopwatch) -> None:
    while True:
        watch.tick()
        (await http.get("/health")).raise_for_status()
        watch.tick()
        await asyncio.sleep(POLL)


async def stream(http: httpx.AsyncClient, watch: Stopwatch) -> None:
    while True:
        async with http.stream("POST", "/generate", json=STORY) as response:
            response.raise_for_status()
            async for _ in response.aiter_raw():
                watch.tick()


async def main(url: str) -> None:
    health, *streams = [Stopwatch() for _ in range(1 + STREAMS)]
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        clients = [asyncio.ensure_future(poll(http, health)), *(asyncio.ensure_future(stream(http, each)) for each in streams)]
        while await asyncio.to_thread(sys.stdin.readline):
            wrong = [repr(each.exception()) for each in clients if each.done()]
            found = {"health": health.read(), "gap": max(each.read() for each in streams), "wrong": wrong}
            print(json.dumps(found), flush=True)


@dataclass(frozen=True)
class Seen:
    """The worst of /health and of the streams in seconds, and what ended a client."""

    health: float
    gap: float
    wrong: list[str]


class Bystanders:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def look(self) -> Seen:
        """Return what they have seen since the last call."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Seen(**json.loads(self._process.stdout.readline()))


@contextlib.contextmanager
def bystanders(url: str) -> Iterator[Bystanders]:
    command = [sys.executable, __file__, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Bystanders(process)
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
