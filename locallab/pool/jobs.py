"""The slow work of the pool, in its own threads: fetches, several at once; loads and closes, one at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from locallab.engine.adapters import AdapterFile
from locallab.errors import EngineClosed, SourceError
from locallab.models.drafts import DraftOf, draft_of
from locallab.models.projectors import projector_of
from locallab.models.registry import Registry
from locallab.models.sources import Progress
from locallab.models.spec import Adapter, ModelSpec, Part
from locallab.models.store import Store
from locallab.pool.loaded import Loaded, OpenEngine, open_model
from locallab.pool.memory import Layers, Memory, MemoryUse, Suited, settings_of
from locallab.pool.trial import Trials

FetchFile = Callable[[ModelSpec, Store, Progress], Path]

FETCHES = 4
"""Concurrent downloads."""

STOPPING = "the server is stopping"

log = logging.getLogger(__name__)


class Jobs:
    """Runs jobs: a job is one fetch, load or close of a model. It ends with one call of its `done`, in the job's thread, with
    the outcome and the memory free afterwards."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        layers: Layers,
        engine: OpenEngine,
        fetch: FetchFile,
        memory: Memory,
        tries: bool = True,
    ) -> None:
        """`registry` knows draft models. `tries`: files that are not known to be good are tried in another process first."""
        self._registry = registry
        self._trials = Trials(store.root.parent / "trials", lambda: self._stopped) if tries else None
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
        done: Callable[[Suited | Exception, MemoryUse], None],
    ) -> None:
        """Fetch the model's file unless it is stored, and fit it to this machine; `held` returns the memory that closing other
        models would free."""

        def run() -> None:
            outcome: Suited | Exception
            try:
                # Wrong settings fail before the download.
                settings = settings_of(spec, self._layers)
                draft = draft_of(spec, settings, self._registry)
                projector_of(spec, settings, self._store)
                path = self._file(spec, progress)
                beside = self._draft_file(draft, progress) if draft else None
                mmproj = projector_of(spec, settings, self._store)
                outcome = self._memory.suit(spec, path, self._layers, held(), draft=beside, mmproj=mmproj)
                outcome = outcome.with_adapters([self._adapter_file(spec, adapter) for adapter in spec.adapters])
                if self._trials is not None:
                    for file in outcome.files:
                        self._trials.look(file, self._store.digest(file.subject))
            except Exception as error:
                outcome = error
            done(outcome, self._memory.room())

        self._fetches.submit(run)

    def pull(self, spec: ModelSpec, progress: Progress) -> Future[Path]:
        """Fetch the model's file without loading it."""
        return self._fetches.submit(self._file, spec, progress)

    def load(self, spec: ModelSpec, suited: Suited, done: Callable[[Loaded | Exception, MemoryUse], None]) -> None:
        """Load the model as it was fitted after its fetch, unless the free memory now allows more or less."""

        def run() -> None:
            outcome: Loaded | Exception
            try:
                self._check()
                if self._trials is not None:
                    for file in suited.files:
                        self._trials.run(file, self._store.digest(file.subject))
                now = self._memory.suit_again(suited, spec, self._layers)
                log.info("%s: %s", spec.id, now.reason)
                outcome = open_model(spec, now, self._engine, self._memory)
            except Exception as error:
                outcome = error
                self._memory.give_back()
            done(outcome, self._memory.room())

        self._loads.submit(run)

    def close(self, loaded: Loaded, grace: float, done: Callable[[MemoryUse], None]) -> None:
        """Close the engine and return its memory to the system."""
        self.closing = loaded

        def run() -> None:
            try:
                if self.closing is not None:
                    self.closing.engine.close(grace)
            except Exception:
                log.exception("a model could not be closed cleanly")
            self.closing = None  # the last reference: its memory is returned below
            self._memory.give_back()
            done(self._memory.room())

        self._loads.submit(run)

    def stop(self) -> None:
        """Make running fetches fail at their next progress report, and jobs that have not begun immediately."""
        self._stopped = True

    def shutdown(self) -> None:
        """Wait for the running jobs."""
        self._fetches.shutdown()
        self._loads.shutdown()

    def _file(self, spec: ModelSpec, progress: Progress) -> Path:
        def report(done: int, total: int | None) -> None:
            self._check()
            progress(done, total)

        self._check()
        return self._fetch(spec, self._store, report)

    def _draft_file(self, draft: DraftOf, progress: Progress) -> Path:
        """Return the file of a draft model; one that is a part of a model has been fetched with it."""
        if draft.part == "model":
            return self._file(draft.spec, progress)
        return self._part(draft.spec, draft.part)

    def _part(self, spec: ModelSpec, part: Part) -> Path:
        path = self._store.path(spec, part)
        if path is None:
            raise SourceError(f"{spec.id}: the file of its {part} has disappeared from {self._store.root}")
        return path

    def _adapter_file(self, spec: ModelSpec, adapter: Adapter) -> AdapterFile:
        """Return an adapter's file, which has been fetched with its model."""
        return AdapterFile(adapter.name, self._part(spec, adapter.part), adapter.scale)

    def _check(self) -> None:
        if self._stopped:
            raise EngineClosed(STOPPING)
