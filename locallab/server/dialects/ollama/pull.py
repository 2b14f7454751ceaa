"""A model that is being fetched, told as Ollama does: a line of JSON now and then, or one at the end."""

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

OFTEN = 0.1
"""Seconds between two lines about progress."""

Fetch = Callable[[Progress], "Future[Path]"]


class Pull:
    """One fetch under way. What comes is told from the fetch's thread; a client that leaves ends it, and the next one goes on
    from there."""

    def __init__(self, fetch: Fetch, digest: str) -> None:
        """To be made in the event loop. Raises what `fetch` raises."""
        self._loop = asyncio.get_running_loop()
        self._digest = digest
        self._stopped = False
        self._told = 0.0
        self._news: dict[str, Any] | None = None
        self._woken = asyncio.Event()
        self._done = fetch(self._progress)
        self._done.add_done_callback(lambda done: self._wake())

    async def next(self) -> dict[str, Any] | None:
        """The latest news once there are some, None when the fetch has ended well. Raises why it failed."""
        await self._woken.wait()
        self._woken.clear()
        news, self._news = self._news, None
        if news is not None:
            if self._done.done():
                self._woken.set()
            return news
        self._done.result()
        return None

    def stop(self) -> None:
        """Ends the fetch as soon as it tells of itself."""
        self._stopped = True

    def _progress(self, done: int, total: int | None) -> None:
        """In the fetch's thread."""
        if self._stopped:
            raise SourceError("the client that asked for it has gone")
        now = time.monotonic()
        if now - self._told >= OFTEN or done == total:
            self._told = now
            counts = {"completed": done} if total is None else {"total": total, "completed": done}
            self._news = {"status": f"pulling {self._digest[:12]}", "digest": f"sha256:{self._digest}", **counts}
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read
            self._loop.call_soon_threadsafe(self._woken.set)

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """All there is to tell, to the end. Raises why it failed."""
        yield {"status": "pulling manifest"}
        while (news := await self.next()) is not None:
            yield news
        yield {"status": "success"}


class PullStream(ByteStream):
    """Each piece of news a line, and why it failed in the last one."""

    def __init__(self, pull: Pull) -> None:
        super().__init__(_lines(pull), LINES, ping=0)
        self._pull = pull

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pull.stop()


async def _lines(pull: Pull) -> AsyncIterator[bytes]:
    try:
        async for body in pull.lines():
            yield line(body)
    except Exception as error:
        report(error, "POST /api/pull")
        yield line(ollama_body(error))


async def finished(pull: Pull, receive: Receive) -> dict[str, Any]:
    """The last of its lines. Raises why it failed, and ClientGone."""
    try:
        return await unless_gone(_last(pull), receive)
    finally:
        pull.stop()


async def _last(pull: Pull) -> dict[str, Any]:
    last: dict[str, Any] = {}
    async for body in pull.lines():
        last = body
    return last
