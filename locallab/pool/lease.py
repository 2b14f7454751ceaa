"""The right to use a loaded model for the duration of one request."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TypeVar

from locallab.engine.request import Kind
from locallab.models.spec import Adapted
from locallab.pool.demand import Ticket
from locallab.pool.loaded import Loaded

Result = TypeVar("Result")


class Waiter(Ticket):
    """A ticket with the future that receives its model or error."""

    def __init__(self, *, leases: bool = True, named: bool = True, kind: Kind | None = None) -> None:
        super().__init__(leases, named, kind=kind)
        self.model_future: Future[Loaded] = Future()


class Lease:
    """A request's right to use a model, made by `Pool.lease`. While it is held the model is unloaded only by force.

    `async with` waits for the model and releases it at the end; `release` may be called at any time.
    """

    def __init__(self, model: Future[Loaded], release: Callable[[], None], spec: Adapted | None = None) -> None:
        """`spec` is what the request has asked for, if that is a model with one of its adapters."""
        self._model = model
        self.release = release
        self._spec = spec

    @property
    def ready(self) -> bool:
        """True if `wait` returns or raises immediately."""
        return self._model.done()

    async def wait(self) -> Loaded:
        """Return the model once it is loaded. Raises ModelLoadError, SourceError, ConfigError, EngineClosed."""
        loaded = self._model.result() if self._model.done() else await shielded(asyncio.wrap_future(self._model))
        return dataclasses.replace(loaded, spec=self._spec) if self._spec else loaded

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


async def shielded(work: asyncio.Future[Result]) -> Result:
    """Await `work`, which goes on if the caller is cancelled; its failure is then not logged as unretrieved."""
    work.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(work)
