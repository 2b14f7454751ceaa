"""Loads, hands out and unloads models as the plan decides: its threads, its timer, its doors for callers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Literal

from locallab.engine import LoopPost, build_features
from locallab.engine.request import Kind
from locallab.errors import EngineClosed, LocalLabError, ModelNotLoaded, UnknownModel
from locallab.models.registry import Registry
from locallab.models.sources import Progress, fetch
from locallab.models.spec import ModelSpec
from locallab.models.store import Store
from locallab.pool.demand import Action, Close, Fetch, Granted, Load, Policy, Refused, Resident, Ticket
from locallab.pool.jobs import STOPPING, FetchFile, Jobs
from locallab.pool.lease import Lease, unharmed
from locallab.pool.loaded import EngineFactory, Loaded, PoolStats, open_engine
from locallab.pool.memory import Layers, Memory, MemoryUse, Need
from locallab.pool.plan import Plan

Status = Literal["ready", "loading", "unloaded", "error"]

log = logging.getLogger(__name__)

NOTHING = "no model is loaded; POST /models/load loads one"


class _Waiter(Ticket):
    """A ticket, and the future that its answer goes to."""

    def __init__(self, *, leases: bool = True, named: bool = True, kind: Kind | None = None) -> None:
        super().__init__(leases, named, kind=kind)
        self.model_future: Future[Loaded] = Future()


class Pool:
    """The models of `registry` and which of them are loaded. Every method may be called from any thread.

    `layers` are (origin, values) pairs for `settings.resolve`, which come after the model's own entry: the environment, the
    flags. `on_demand` and `keep_alive` are as in ServerSettings. What runs on a model that is unloaded by force gets `grace`
    seconds to finish; otherwise it is waited for. Engines hand their events to the event loop that `start` names; before
    that, to the caller's listeners directly.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        layers: Layers = (),
        *,
        grace: float = 10.0,
        on_demand: Policy = "swap",
        keep_alive: float = -1,
        engine: EngineFactory = open_engine,
        fetch: FetchFile = fetch,
        memory: Memory | None = None,
    ) -> None:
        self.registry = registry
        self.store = store
        self.memory = memory or Memory(gpu=bool(build_features()["gpu_offload"]))
        self._jobs = Jobs(store, layers, lambda path, settings: engine(path, settings, self._post), fetch, self.memory)
        self._grace = grace
        self.keep_alive = keep_alive
        self._post = LoopPost()
        self._lock = threading.RLock()  # over everything below
        self._plan = Plan(on_demand)
        self._models: dict[str, Loaded] = {}
        self._gone: dict[Resident, Future[None]] = {}
        self._needs: dict[str, Need] = {}
        self._watching: dict[str, Progress] = {}
        self._errors: dict[str, str] = {}
        self._seers: list[Callable[[Loaded], None]] = []
        self._stats = PoolStats()
        self._timer: threading.Timer | None = None
        self._closed = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on listeners are called in `loop`, all those of one engine step in one callback."""
        self._post.loop = loop

    def each(self, see: Callable[[Loaded], None]) -> None:
        """Calls `see` with every model that is loaded, now and later on, before it answers; from any thread."""
        with self._lock:
            self._seers.append(see)
            for loaded in self._models.values():
                see(loaded)

    # ---- questions

    @property
    def on_demand(self) -> Policy:
        return self._plan.policy

    @property
    def current(self) -> Loaded | None:
        """The model that answers requests naming none."""
        with self._lock:
            resident = self._plan.current()
            return self._models[resident.id] if resident else None

    @property
    def default(self) -> ModelSpec | None:
        """The model that answers requests naming none, or that the next one of them brings back."""
        with self._lock:
            chosen = self._plan.choose()
            return self.registry.get(chosen) if chosen else None

    @property
    def loaded(self) -> list[Loaded]:
        """Every model that answers, last used first."""
        with self._lock:
            found = sorted(self._plan.residents.values(), key=lambda each: (each.leases > 0, each.used), reverse=True)
            return [self._models[resident.id] for resident in found]

    def get(self, model_id: str) -> Loaded | None:
        """The model of this id or alias if it is loaded. Raises UnknownModel."""
        return self._models.get(self.registry.get(model_id).id)

    def status(self, model_id: str) -> Status:
        """How the model of this id stands. Raises UnknownModel."""
        id = self.registry.get(model_id).id
        with self._lock:
            if id in self._models:
                return "ready"
            if id in self._plan.queue:
                return "loading"
            return "error" if id in self._errors else "unloaded"

    def error(self, model_id: str) -> str | None:
        """Why the last load of this model failed, None if it did not."""
        return self._errors.get(self.registry.get(model_id).id)

    def seconds_left(self, model_id: str) -> float | None:
        """Seconds until the model is unloaded if nobody asks it any more; None: never, or it is not loaded."""
        with self._lock:
            resident = self._plan.residents.get(self.registry.get(model_id).id)
            if resident is None or self.keep_alive < 0:
                return None
            idle = 0.0 if resident.leases else time.monotonic() - resident.used
            return max(0.0, self.keep_alive - idle)

    def stats(self) -> PoolStats:
        with self._lock:
            return dataclasses.replace(self._stats, loading=len(self._plan.queue))

    # ---- doors

    def lease(self, model_id: str | None, *, strict: bool, kind: Kind | None = None) -> Lease:
        """Asks for the right to use a model, by its id or an alias; None or "", or unless `strict` a name that the registry
        does not know, is the current one: of this `kind`, if there is one. To be entered (`async with`), or released by the
        caller.

        Raises UnknownModel, ModelNotLoaded, EngineClosed at once; waiting for it raises why a load failed.
        """
        spec = self._spec(model_id, strict)
        with self._changing():
            chosen = spec.id if spec else self._plan.choose(kind)
            if chosen is None:
                raise EngineClosed(NOTHING)
            if not self._plan.allows(chosen):
                raise ModelNotLoaded(chosen)
            waiter = _Waiter(named=spec is not None, kind=kind)
            self._plan.ask(waiter, chosen)
        return Lease(waiter.model_future, lambda: self._release(waiter))

    async def load(self, model_id: str, *, force: bool = False) -> Loaded:
        """As `load_now`, without blocking the event loop; a caller that is cancelled does not stop the load."""
        return await unharmed(asyncio.wrap_future(self._load_on_purpose(model_id, None, force)))

    def load_now(self, model_id: str, progress: Progress | None = None, *, force: bool = False) -> Loaded:
        """Fetches and loads the model, which then answers requests that name none. Blocks; waits for the requests of a
        model that must make room, with `force` for no longer than the grace. Where there is room enough, and with the
        policy "keep", what is loaded stays until the load has succeeded.

        Raises UnknownModel, ConfigError, SourceError, ModelLoadError, EngineClosed.
        """
        return self._load_on_purpose(model_id, progress, force).result()

    def pull(self, model_id: str, progress: Progress) -> Future[Path]:
        """Has the model's file fetched, and loads nothing. What `progress` raises ends that.

        Raises UnknownModel, EngineClosed; the future raises SourceError, EngineClosed.
        """
        spec = self.registry.get(model_id)
        with self._changing():
            return self._jobs.pull(spec, progress)

    async def unload(self, model_id: str, *, force: bool = False) -> None:
        """Unloads the model once its requests have ended, with `force` after the grace at the latest. One that is being
        loaded is waited for; one that is not loaded stays so. Raises UnknownModel."""
        await unharmed(asyncio.ensure_future(self._unload(self.registry.get(model_id).id, force)))

    def let_go(self, model_id: str) -> None:
        """Unloads the model if nobody uses it, without waiting for that; the next request brings it back.

        Raises UnknownModel.
        """
        with contextlib.suppress(EngineClosed), self._changing():
            self._plan.let_go(self.registry.get(model_id).id)

    def close(self, grace: float = 0.0) -> None:
        """Ends what runs after `grace` seconds, frees every model and loads no other. Blocks; may be called again."""
        with self._lock:
            self._closed = True
            self._jobs.stop()
            live = [*self._models.values(), *filter(None, [self._jobs.closing])]
            self._models.clear()
            self._plan.stop(EngineClosed(STOPPING))
            self._carry_out(self._plan.decide())
            for gone in self._gone.values():
                gone.set_exception(EngineClosed(STOPPING))
            self._gone.clear()
            if self._timer is not None:
                self._timer.cancel()
        with ThreadPoolExecutor(max(1, len(live)), "close") as closing:
            wait([closing.submit(loaded.engine.close, grace) for loaded in live])
        self._jobs.shutdown()

    def _spec(self, model_id: str | None, strict: bool) -> ModelSpec | None:
        try:
            return self.registry.get(model_id) if model_id else None
        except UnknownModel:
            if strict:
                raise
            return None

    def _load_on_purpose(self, model_id: str, progress: Progress | None, force: bool) -> Future[Loaded]:
        id = self.registry.get(model_id).id
        waiter = _Waiter(leases=False)
        with self._changing():
            if progress is not None:
                self._watching[id] = progress
            self._plan.ask(waiter, id, force=force)
        return waiter.model_future

    async def _unload(self, id: str, force: bool) -> None:
        with self._changing():
            load = _Waiter(leases=False) if self._plan.job == Load(id) else None
            if load is not None:
                self._plan.ask(load, id)
        if load is not None:
            with contextlib.suppress(Exception):
                await unharmed(asyncio.wrap_future(load.model_future))
        with self._changing():
            self._plan.unload(id, force=force)
            resident = self._plan.residents.get(id)
            gone = self._gone.setdefault(resident, Future()) if resident else None
        if gone is not None:
            await unharmed(asyncio.wrap_future(gone))

    def _release(self, waiter: _Waiter) -> None:
        with self._lock:
            self._plan.release(waiter, time.monotonic())
            self._decide()

    # ---- what the plan decides

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Holds the lock over a change of the plan and carries out what follows from it. Raises EngineClosed."""
        with self._lock:
            if self._closed:
                raise EngineClosed(STOPPING)
            yield
            self._decide()

    def _decide(self) -> None:
        if self._closed:
            return
        if self.keep_alive >= 0:
            self._expire()
        self._carry_out(self._plan.decide())

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Granted(_Waiter() as waiter):
                    waiter.model_future.set_result(self._models[waiter.model])
                case Refused(_Waiter() as waiter, error):
                    waiter.model_future.set_exception(error)
                case Fetch(id):
                    progress = functools.partial(self._tell, id)
                    tell = functools.partial(self._after_fetch, id)
                    self._jobs.fetch(self.registry.get(id), progress, self._held, tell)
                case Load(id):
                    path = self._needs[id].path
                    self._jobs.load(self.registry.get(id), path, functools.partial(self._after_load, id))
                case Close(resident):
                    grace = self._grace if resident.leases else 0.0
                    self._jobs.close(self._models.pop(resident.id), grace, functools.partial(self._after_close, resident))

    def _expire(self) -> None:
        """Lets idle models go; one timer at most waits for the next."""
        now = time.monotonic()
        due = self._plan.expire(now, self.keep_alive)
        if due is not None and self._timer is None:
            self._timer = threading.Timer(due - now, self._ring)
            self._timer.daemon = True
            self._timer.start()

    def _ring(self) -> None:
        with self._lock:
            self._timer = None
            self._decide()

    # ---- what the jobs tell, in their threads

    def _tell(self, id: str, done: int, total: int | None) -> None:
        if watcher := self._watching.get(id):
            watcher(done, total)

    def _held(self) -> MemoryUse:
        with self._lock:
            return self._plan.held()

    def _after_fetch(self, id: str, outcome: Need | Exception, room: MemoryUse) -> None:
        with self._lock:
            self._watching.pop(id, None)
            if isinstance(outcome, Exception):
                self._fail(id, outcome, room)
            else:
                self._needs[id] = outcome
                self._plan.fetched(id, outcome, room)
            self._decide()

    def _after_load(self, id: str, outcome: Loaded | Exception, room: MemoryUse) -> None:
        with self._lock:
            if isinstance(outcome, Exception):
                self._fail(id, outcome, room)
            elif not self._closed:
                self._put_in_place(outcome)
                # Pages that no request has touched yet are not in the measured figure.
                use = outcome.memory.at_least(self._needs[id].least)
                self._plan.loaded(id, use, room, time.monotonic(), outcome.engine.info.kind)
            self._decide()
        if self._closed and isinstance(outcome, Loaded):
            outcome.engine.close()

    def _after_close(self, resident: Resident, room: MemoryUse) -> None:
        log.info("unloaded %s", resident.id)
        with self._lock:
            self._stats = dataclasses.replace(self._stats, unloads=self._stats.unloads + 1)
            if gone := self._gone.pop(resident, None):
                gone.set_result(None)
            self._plan.closed(room)
            self._decide()

    def _put_in_place(self, loaded: Loaded) -> None:
        self._models[loaded.spec.id] = loaded
        self._errors.pop(loaded.spec.id, None)
        for see in self._seers:
            see(loaded)
        memory = max(loaded.memory.ram, loaded.memory.vram) / 1e6
        log.info("loaded %s in %.1f s; it takes %.0f MB", loaded.spec.id, loaded.seconds, memory)
        before = self._stats
        self._stats = dataclasses.replace(before, loads=before.loads + 1, load_seconds=before.load_seconds + loaded.seconds)

    def _fail(self, id: str, error: Exception, room: MemoryUse) -> None:
        expected = isinstance(error, LocalLabError)
        if not self._closed:
            log.warning("%s could not be loaded: %s", id, error, exc_info=None if expected else error)
        self._errors[id] = str(error) if expected else f"internal error: {error!r}"
        self._stats = dataclasses.replace(self._stats, failures=self._stats.failures + 1)
        self._plan.failed(id, error, room)
