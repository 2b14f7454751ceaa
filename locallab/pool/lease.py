"""The right to use a loaded model for as long as one request runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TypeVar

from locallab.pool.loaded import Loaded

Result = TypeVar("Result")


class Lease:
    """Made by `Pool.lease`. While it is held its model is not unloaded, unless by force; `release` may be called at any time.

    `async with` waits for the model, and releases it at the end.
    """

    def __init__(self, model: Future[Loaded], release: Callable[[], None]) -> None:
        self._model = model
        self.release = release

    @property
    def ready(self) -> bool:
        """Whether `wait` returns, or raises, at once."""
        return self._model.done()

    async def wait(self) -> Loaded:
        """The model, once it is loaded. Raises ModelLoadError, SourceError, ConfigError, EngineClosed."""
        if self._model.done():
            return self._model.result()
        return await unharmed(asyncio.wrap_future(self._model))

    async def __aenter__(self) -> Loaded:
        try:
            return await self.wait()
        except BaseException:
            self.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


async def unharmed(work: asyncio.Future[Result]) -> Result:
    """What `work` comes to. A caller that is cancelled does not stop it; that it fails then is no news for the log."""
    work.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(work)
