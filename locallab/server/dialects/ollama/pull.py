"""The download of a model, reported as Ollama does: a line of JSON now and then, or one at the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from locallab.errors import SourceError
from locallab.models.sources import Progress
from locallab.server.dialects.ollama.errors import ollama_body
from locallab.server.errors import report
from locallab.server.inference.generation import unless_gone
from locallab.server.streaming import LINES, ByteStream, line

INTERVAL = 0.1
"""Seconds between two lines about progress."""

Fetch = Callable[[Progress], "Future[Path]"]


class Pull:
    """A download under way, reported from its own thread. A client that leaves ends it; the next download resumes it."""

    def __init__(self, fetch: Fetch, digest: str, done: Callable[[], object] = lambda: None) -> None:
        """Made in the event loop, in which `done` is called at a good end. Raises what `fetch` raises."""
        self._on_done = done
        self._loop = asyncio.get_running_loop()
        self._digest = digest
        self._stopped = False
        self._reported = 0.0
        self._status: dict[str, Any] | None = None
        self._woken = asyncio.Event()
        self._done = fetch(self._progress)
        self._done.add_done_callback(lambda done: self._wake())

    def stop(self) -> None:
        """End the download at its next progress report."""
        self._stopped = True

    async def statuses(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the latest status whenever it has changed, to the end. Raises the error of a failed download."""
        yield {"status": "pulling manifest"}
        while True:
            await self._woken.wait()
            self._woken.clear()
            done = self._done.done()
            status, self._status = self._status, None
            if status is not None:
                yield status
            if done:
                break
        self._done.result()
        self._on_done()
        yield {"status": "success"}

    def _progress(self, done: int, total: int | None) -> None:
        """Take a progress report, in the thread of the download."""
        if self._stopped:
            raise SourceError("the client that requested the model has disconnected")
        now = time.monotonic()
        if now - self._reported >= INTERVAL or done == total:
            self._reported = now
            counts = {"completed": done} if total is None else {"total": total, "completed": done}
            self._status = {"status": f"pulling {self._digest[:12]}", "digest": f"sha256:{self._digest}", **counts}
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: there are no readers
            self._loop.call_soon_threadsafe(self._woken.set)


class PullStream(ByteStream):
    """A line for each status of a download; an error is the last line."""

    def __init__(self, pull: Pull) -> None:
        async def lines() -> AsyncIterator[bytes]:
            try:
                async for status in pull.statuses():
                    yield line(status)
            except Exception as error:
                report(error, "POST /api/pull")
                yield line(ollama_body(error))

        super().__init__(lines(), LINES, ping=0)
        self._pull = pull

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pull.stop()


async def last_status(pull: Pull, receive: Receive) -> dict[str, Any]:
    """Wait for the end of a download. Raises the error of a failed one, and ClientGone."""

    async def last() -> dict[str, Any]:
        return [status async for status in pull.statuses()][-1]

    try:
        return await unless_gone(last(), receive)
    finally:
        pull.stop()
