"""The slow work of the pool, in threads of its own: fetching files, several at once; loading and closing, one at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from locallab.errors import EngineClosed
from locallab.models.sources import Progress
from locallab.models.spec import ModelSpec
from locallab.models.store import Store
from locallab.pool.loaded import Loaded, OpenEngine, open_model
from locallab.pool.memory import Layers, Memory, MemoryUse, Need, settings_of

FetchFile = Callable[[ModelSpec, Store, Progress], Path]

FETCHES = 4
"""Downloads at once."""

STOPPING = "the server is stopping"

log = logging.getLogger(__name__)


class Jobs:
    """Every job ends in one call of its `tell`, in the job's thread, with the outcome and the memory that is free then."""

    def __init__(self, store: Store, layers: Layers, engine: OpenEngine, fetch: FetchFile, memory: Memory) -> None:
        self._store = store
        self._layers = layers
        self._engine = engine
        self._fetch = fetch
        self._memory = memory
        self._stopped = False
        self.closing: Loaded | None = None
        self._loads = ThreadPoolExecutor(1, "load")
        self._fetches = ThreadPoolExecutor(FETCHES, "fetch")

    def fetch(
        self,
        spec: ModelSpec,
        progress: Progress,
        held: Callable[[], MemoryUse],
        tell: Callable[[Need | Exception, MemoryUse], None],
    ) -> None:
        """Has the model's file fetched, if it is not here, and judged: `held` is what other models could give back."""
        self._fetches.submit(self._run_fetch, spec, progress, held, tell)

    def pull(self, spec: ModelSpec, progress: Progress) -> Future[Path]:
        """Has the model's file fetched for its own sake."""
        return self._fetches.submit(self._file, spec, progress)

    def load(self, spec: ModelSpec, path: Path, tell: Callable[[Loaded | Exception, MemoryUse], None]) -> None:
        self._loads.submit(self._run_load, spec, path, tell)

    def close(self, loaded: Loaded, grace: float, tell: Callable[[MemoryUse], None]) -> None:
        """Frees the model and gives its memory back to the system."""
        self.closing = loaded
        self._loads.submit(self._run_close, grace, tell)

    def stop(self) -> None:
        """Fetches end as soon as they can; what has not begun fails."""
        self._stopped = True

    def shutdown(self) -> None:
        """Waits for what runs."""
        self._fetches.shutdown()
        self._loads.shutdown()

    def _run_fetch(
        self,
        spec: ModelSpec,
        progress: Progress,
        held: Callable[[], MemoryUse],
        tell: Callable[[Need | Exception, MemoryUse], None],
    ) -> None:
        outcome: Need | Exception
        try:
            settings_of(spec, self._layers)  # what is wrong with them is told before anything is fetched
            path = self._file(spec, progress)
            outcome = self._memory.suit(spec, path, self._layers, held()).need
        except Exception as error:
            outcome = error
        tell(outcome, self._memory.room())

    def _file(self, spec: ModelSpec, progress: Progress) -> Path:
        def report(done: int, total: int | None) -> None:
            self._check()
            progress(done, total)

        self._check()
        return self._fetch(spec, self._store, report)

    def _run_load(self, spec: ModelSpec, path: Path, tell: Callable[[Loaded | Exception, MemoryUse], None]) -> None:
        outcome: Loaded | Exception
        try:
            self._check()
            suited = self._memory.suit(spec, path, self._layers)
            log.info("%s: %s", spec.id, suited.reason)
            outcome = open_model(spec, path, suited.settings, self._engine, self._memory)
        except Exception as error:
            outcome = error
            self._memory.give_back()
        tell(outcome, self._memory.room())

    def _run_close(self, grace: float, tell: Callable[[MemoryUse], None]) -> None:
        try:
            if self.closing is not None:
                self.closing.engine.close(grace)
        except Exception:
            log.exception("a model could not be closed in good order")
        self.closing = None  # before its memory is given back: it holds some
        self._memory.give_back()
        tell(self._memory.room())

    def _check(self) -> None:
        if self._stopped:
            raise EngineClosed(STOPPING)
