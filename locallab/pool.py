"""Which model is loaded: load another, say how each stands, close. One model at a time for now."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from locallab.chat.templates import ChatTemplate
from locallab.engine import Engine
from locallab.engine.request import Delivery, Listener, TokenEvent
from locallab.errors import EngineClosed, ModelError, ModelLoadError, ModelNotLoaded, UnknownModel
from locallab.models.registry import ModelSpec, Registry
from locallab.models.sources import Progress, fetch
from locallab.models.store import Store
from locallab.settings import EngineSettings, resolve

Status = Literal["ready", "loading", "unloaded", "error"]
EngineFactory = Callable[[Path, EngineSettings, Delivery], Engine]
STOPPING = "the server is stopping"
Fetch = Callable[[ModelSpec, Store, Progress], Path]


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """A model that answers. `created` is when it was loaded, in seconds since the epoch."""

    spec: ModelSpec
    engine: Engine
    template: ChatTemplate
    created: int


def dispatch(events: Iterable[tuple[Listener, TokenEvent]]) -> None:
    """Hands one step's events to their listeners."""
    for listener, event in events:
        listener(event)


class Pool:
    """Loads models of `registry` and says which one is loaded. Every method may be called from any thread.

    `layers` are (origin, values) pairs for `settings.resolve`, which come after the model's own entry: the environment, the
    flags. A model that is replaced gets `grace` seconds to finish what runs. Engines hand their events to the event loop that
    `start` names; before that, to the caller's listeners directly.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        layers: Sequence[tuple[str, Mapping[str, Any]]] = (),
        *,
        grace: float = 10.0,
        engine: EngineFactory = Engine,
        fetch: Fetch = fetch,
    ) -> None:
        self.registry = registry
        self.store = store
        self._layers = layers
        self._grace = grace
        self._engine = engine
        self._fetch = fetch
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()  # over the next three
        self._current: Loaded | None = None
        self._live: list[Loaded] = []  # the current model, and the one before it that may still be closing
        self._closed = False
        self._loading: set[str] = set()
        self._errors: dict[str, str] = {}
        self._worker = ThreadPoolExecutor(1, "load")  # one load at a time; an old engine closes before the next load begins

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on listeners are called in `loop`, all those of one engine step in one callback."""
        self._loop = loop

    @property
    def current(self) -> Loaded | None:
        return self._current

    def status(self, model_id: str) -> Status:
        """How the model of this id stands."""
        spec = self.registry.get(model_id)
        if self._current is not None and self._current.spec.id == spec.id:
            return "ready"
        if spec.id in self._loading:
            return "loading"
        return "error" if spec.id in self._errors else "unloaded"

    def error(self, model_id: str) -> str | None:
        """Why the last load of this model failed, None if it did not."""
        return self._errors.get(self.registry.get(model_id).id)

    def find(self, model_id: str | None, *, strict: bool) -> Loaded:
        """The loaded model, asked for by None, its id or an alias; unless `strict`, by any name the registry does not know too.

        Raises UnknownModel (ModelNotLoaded for another model of the registry), or EngineClosed when no model is ready yet.
        """
        current = self._current
        if model_id:
            try:
                spec = self.registry.get(model_id)
            except UnknownModel:
                if strict:
                    raise
            else:
                if spec.id in self._loading and (current is None or current.spec.id != spec.id):
                    raise EngineClosed(f"model {spec.id!r} is still loading")
                if current is not None and current.spec.id != spec.id:
                    raise ModelNotLoaded(spec.id)
        if current is None:
            raise EngineClosed(self._why_none())
        return current

    async def load(self, model_id: str) -> Loaded:
        """As `load_now`, without blocking the event loop; a caller that is cancelled does not stop the load."""
        return await asyncio.shield(asyncio.wrap_future(self._submit(model_id, _silent)))

    def load_now(self, model_id: str, progress: Progress | None = None) -> Loaded:
        """Fetches and loads the model, then lets it take the place of the one before. Blocks.

        Raises UnknownModel, ConfigError, SourceError, ModelLoadError, EngineClosed; the model before then goes on serving.
        """
        return self._submit(model_id, progress or _silent).result()

    def close(self, grace: float = 0.0) -> None:
        """Ends what runs after `grace` seconds, frees the model and loads no other. Blocks; may be called again."""
        with self._lock:
            self._closed = True
            live, self._live = self._live, []
            self._current = None
        for loaded in live:
            loaded.engine.close(grace)
        self._worker.shutdown()

    def _submit(self, model_id: str, progress: Progress) -> Future[Loaded]:
        spec = self.registry.get(model_id)
        loaded: Future[Loaded] = Future()
        self._loading.add(spec.id)
        try:
            self._worker.submit(self._swap, spec, progress, loaded)
        except RuntimeError:  # the worker is shut down
            self._loading.discard(spec.id)
            raise EngineClosed(STOPPING) from None
        return loaded

    def _swap(self, spec: ModelSpec, progress: Progress, result: Future[Loaded]) -> None:
        """In the load thread: loads, lets the caller go on, then closes the model before."""
        before = self._current
        try:
            loaded = before if before is not None and before.spec.id == spec.id else self._open(spec, progress)
            self._put_in_place(loaded)
        except Exception as error:
            self._errors[spec.id] = str(error)
            self._loading.discard(spec.id)
            result.set_exception(error)
            return
        self._errors.pop(spec.id, None)
        self._loading.discard(spec.id)
        result.set_result(loaded)
        if before is not None and before is not loaded:
            before.engine.close(self._grace)

    def _open(self, spec: ModelSpec, progress: Progress) -> Loaded:
        def report(done: int, total: int | None) -> None:
            self._check_open()
            progress(done, total)

        self._check_open()
        settings = resolve(EngineSettings, (f"models.yaml: {spec.id}", spec.engine_settings), *self._layers)
        path = self._fetch(spec, self.store, report)
        self._check_open()
        engine = self._engine(path, settings, self._deliver)
        try:
            template = ChatTemplate(engine.info.chat_template, engine.info.bos, engine.info.eos)
        except ModelError as error:
            engine.close()
            raise ModelLoadError(path, str(error)) from None
        return Loaded(spec, engine, template, int(time.time()))

    def _put_in_place(self, loaded: Loaded) -> None:
        with self._lock:
            if not self._closed:
                self._live = [each for each in (self._current, loaded) if each is not None]
                self._current = loaded
                return
        loaded.engine.close()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed(STOPPING)

    def _why_none(self) -> str:
        loading = sorted(self._loading)
        if self._closed:
            return STOPPING
        if loading:
            return f"model {loading[0]!r} is still loading"
        return "no model is loaded; POST /models/load loads one"

    def _deliver(self, events: list[tuple[Listener, TokenEvent]]) -> None:
        """In the engine's thread."""
        if self._loop is None:
            dispatch(events)
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read
            self._loop.call_soon_threadsafe(dispatch, events)


def _silent(done: int, total: int | None) -> None:
    """Nobody watches this fetch."""
