"""The pool of models: carries out what the plan decides, with the threads, the timer and the interface for callers."""

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

from locallab.engine import Engine, LoopPost, build_features
from locallab.engine.request import Kind
from locallab.errors import EngineClosed, EngineDied, ModelNotLoaded, UnknownModel
from locallab.models.registry import Registry
from locallab.models.sources import Progress, fetch
from locallab.models.spec import Adapted, ModelSpec
from locallab.models.store import Store
from locallab.pool.demand import Action, Close, Fetch, Granted, Load, Policy, Refused, Resident
from locallab.pool.failures import Failures
from locallab.pool.jobs import STOPPING, FetchFile, Jobs
from locallab.pool.lease import Lease, Waiter, shielded
from locallab.pool.loaded import EngineFactory, Loaded, PoolStats, open_engine
from locallab.pool.memory import Layers, Memory, MemoryUse, Suited
from locallab.pool.plan import Plan
from locallab.pool.set_aside import SetAside
from locallab.supervision import BlackBox, Supervision

Status = Literal["ready", "loading", "unloaded", "error"]

log = logging.getLogger(__name__)

NOTHING = "no model is loaded; POST /models/load loads one"


class Pool:
    """The loaded models of `registry`. Every method may be called from any thread.

    `layers` are (origin, values) pairs for `settings.resolve` that override the model's own entry: the environment, the flags.
    `on_demand` and `keep_alive` are as in ServerSettings. Requests on a model that is unloaded by force get `grace` seconds to
    finish; otherwise they are awaited. `engine` replaces the class that a file calls for. Listeners are called in the event
    loop passed to `start`, before that in the engine's thread. `supervision` has a black box, which learns what is loaded, and
    the models that are set aside: they are loaded only if asked for with `load` or `load_now`, and not too soon.
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
        engine: EngineFactory | None = None,
        fetch: FetchFile = fetch,
        memory: Memory | None = None,
        supervision: Supervision | None = None,
    ) -> None:
        self.registry = registry
        self.store = store
        self.layers = layers
        self.supervision = supervision or Supervision(BlackBox())
        self.memory = memory or Memory(bool(build_features()["gpu_offload"]), self.supervision.ram)
        self._post = LoopPost()
        self._engine = engine
        self._jobs = Jobs(registry, store, layers, self._open_engine, fetch, self.memory, tries=engine is None)
        self._grace = grace
        self.keep_alive = keep_alive
        self._lock = threading.RLock()  # over everything below
        self._plan = Plan(on_demand)
        self._models: dict[str, Loaded] = {}
        self._dead: dict[str, Loaded] = {}  # until they are closed
        self._gone: dict[Resident, Future[None]] = {}
        self._suited: dict[str, Suited] = {}  # from the end of the fetch to the end of the load
        self._watching: dict[str, Progress] = {}
        self._box = self.supervision.box
        self.set_aside = SetAside(self.supervision.set_aside)
        self.failures = Failures(self.set_aside.reasons)
        self._on_loaded: list[Callable[[Loaded], None]] = []
        self._stats = PoolStats()
        self._timer: threading.Timer | None = None
        self._closed = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call listeners in `loop` from now on, all those of one engine step in one callback."""
        self._post.loop = loop

    def on_loaded(self, callback: Callable[[Loaded], None]) -> None:
        """Call `callback` with every model loaded now or later, before it answers; in any thread."""
        with self._lock:
            self._on_loaded.append(callback)
            for loaded in self._models.values():
                callback(loaded)

    # ---- questions

    @property
    def on_demand(self) -> Policy:
        return self._plan.policy

    @property
    def current(self) -> Loaded | None:
        """The model of requests that name none, if it is loaded."""
        with self._lock:
            resident = self._plan.current()
            return self._models[resident.id] if resident else None

    @property
    def default(self) -> ModelSpec | None:
        """The model of requests that name none, which the next one of them loads if necessary."""
        with self._lock:
            chosen = self._plan.choose()
            return self.registry.get(chosen) if chosen else None

    @property
    def loaded(self) -> list[Loaded]:
        """The loaded models, most recently used first."""
        with self._lock:
            found = sorted(self._plan.residents.values(), key=lambda each: (each.leases > 0, each.used), reverse=True)
            return [self._models[resident.id] for resident in found if resident.id in self._models]

    @property
    def loading(self) -> dict[str, int]:
        """The models that are fetched or loaded, the next one first, with the number of requests that wait for each."""
        with self._lock:
            return {id: sum(each.leases for each in demand.tickets) for id, demand in self._plan.queue.items()}

    def get(self, model_id: str) -> Loaded | None:
        """Return the model of this id or alias if it is loaded. Raises UnknownModel."""
        return self._models.get(self.registry.get(model_id).loaded_as)

    def status(self, model_id: str) -> Status:
        """Return the status of the model of this id or alias. Raises UnknownModel."""
        id = self.registry.get(model_id).loaded_as
        with self._lock:
            if id in self._models:
                return "ready"
            if id in self._plan.queue:
                return "loading"
            return "error" if id in self.failures.reasons else "unloaded"

    def error(self, model_id: str) -> str | None:
        """Return why the last load of this model failed, or its engine ended; None if neither did. Raises UnknownModel."""
        return self.failures.reasons.get(self.registry.get(model_id).loaded_as)

    def seconds_left(self, model_id: str) -> float | None:
        """Return the seconds until the model is unloaded unless requested; None: never, or it is not loaded."""
        id = self.registry.get(model_id).loaded_as
        with self._lock:
            return self._plan.seconds_left(id, time.monotonic(), self.keep_alive)

    def stats(self) -> PoolStats:
        with self._lock:
            return dataclasses.replace(self._stats, loading=len(self._plan.queue))

    # ---- requests

    def lease(self, model_id: str | None, *, strict: bool, kind: Kind | None = None) -> Lease:
        """Request a model by id or alias. None, "" and, unless `strict`, unknown names stand for the current model, of this
        `kind` if one is loaded. The caller enters the lease (`async with`) or releases it.

        Raises UnknownModel, ModelNotLoaded, EngineClosed, EngineDied, and ModelLoadError for a model set aside, immediately;
        `Lease.wait` raises why a load failed.
        """
        try:
            spec = self.registry.get(model_id) if model_id else None
        except UnknownModel:
            if strict:
                raise
            spec = None
        with self._changing():
            chosen = spec.loaded_as if spec else self._plan.choose(kind)
            if chosen is None:
                raise EngineClosed("; ".join([NOTHING, *(f"{id}: {each}" for id, each in self.set_aside.reasons.items())]))
            self.set_aside.refuse(chosen)
            if chosen not in self._models:
                self.failures.check(chosen)
            if not self._plan.allows(chosen):
                raise ModelNotLoaded(chosen)
            waiter = Waiter(named=spec is not None, kind=kind)
            self._plan.ask(waiter, chosen)

        def release() -> None:
            with self._lock:
                self._plan.release(waiter, time.monotonic())
                self._decide()

        return Lease(waiter.model_future, release, spec if isinstance(spec, Adapted) else None)

    async def load(self, model_id: str, *, force: bool = False) -> Loaded:
        """Load as `load_now` without blocking the event loop; cancelling the caller does not stop the load."""
        return await shielded(asyncio.wrap_future(self._load_explicitly(model_id, None, force)))

    def load_now(self, model_id: str, progress: Progress | None = None, *, force: bool = False) -> Loaded:
        """Fetch and load the model, which becomes the one for requests that name none. Blocks; waits for the requests of
        models that must make room, with `force` at most for the grace. Where memory allows, and with the policy "keep", other
        models stay loaded until the load has succeeded.

        Raises UnknownModel, ConfigError, SourceError, ModelLoadError, EngineClosed.
        """
        return self._load_explicitly(model_id, progress, force).result()

    def pull(self, model: str | ModelSpec, progress: Progress) -> Future[Path]:
        """Fetch the file of a model, registered or not, without loading it. An exception of `progress` ends the fetch.

        Raises UnknownModel, EngineClosed; the future raises SourceError, EngineClosed.
        """
        spec = model if isinstance(model, ModelSpec) else self.registry.get(model)
        with self._changing():
            return self._jobs.pull(spec, progress)

    async def unload(self, model_id: str, *, force: bool = False) -> None:
        """Unload the model once its requests have ended, with `force` after the grace at the latest. A running load is
        awaited first; if the model is not loaded, nothing happens. Cancelling the caller does not stop the unload. Raises
        UnknownModel."""
        id = self.registry.get(model_id).loaded_as

        async def unload() -> None:
            with self._changing():
                load = Waiter(leases=False) if self._plan.job == Load(id) else None
                if load is not None:
                    self._plan.ask(load, id)
            if load is not None:
                with contextlib.suppress(Exception):
                    await shielded(asyncio.wrap_future(load.model_future))
            with self._changing():
                self._plan.unload(id, force=force)
                resident = self._plan.residents.get(id)
                gone = self._gone.setdefault(resident, Future()) if resident else None
            if gone is not None:
                await shielded(asyncio.wrap_future(gone))

        await shielded(asyncio.ensure_future(unload()))

    def release_idle(self, model_id: str) -> None:
        """Unload the model if it is idle, without waiting for that; the next request reloads it. Raises UnknownModel."""
        with contextlib.suppress(EngineClosed), self._changing():
            self._plan.release_idle(self.registry.get(model_id).loaded_as)

    def close(self, grace: float = 0.0) -> None:
        """End running requests after `grace` seconds and free all models for good. Blocks; may be called again."""
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

    def _load_explicitly(self, model_id: str, progress: Progress | None, force: bool) -> Future[Loaded]:
        id = self.registry.get(model_id).loaded_as
        waiter = Waiter(leases=False)
        with self._changing():
            self.set_aside.check(id)
            if progress is not None:
                self._watching[id] = progress
            self._plan.ask(waiter, id, force=force)
        return waiter.model_future

    # ---- carrying out the plan

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock over a change of the plan and carry out the actions it causes. Raises EngineClosed."""
        with self._lock:
            if self._closed:
                raise EngineClosed(STOPPING)
            yield
            self._decide()

    def _decide(self) -> None:
        if self._closed:
            return
        if self.keep_alive >= 0:

            def on_timer() -> None:
                with self._lock:
                    self._timer = None
                    self._decide()

            now = time.monotonic()
            due = self._plan.expire(now, self.keep_alive)
            if due is not None and self._timer is None:
                self._timer = threading.Timer(due - now, on_timer)
                self._timer.daemon = True
                self._timer.start()
        self._carry_out(self._plan.decide())

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Granted(Waiter() as waiter):
                    waiter.model_future.set_result(self._models[waiter.model])
                case Refused(Waiter() as waiter, error):
                    waiter.model_future.set_exception(error)
                case Fetch(id):
                    progress = functools.partial(self._report, id)
                    self._jobs.fetch(self.registry.get(id), progress, self.held, functools.partial(self._after_fetch, id))
                case Load(id):
                    self._box.loading, self._box.ram = id, self._plan.held().ram
                    self._jobs.load(self.registry.get(id), self._suited[id], functools.partial(self._after_load, id))
                case Close(resident):
                    grace = self._grace if resident.leases else 0.0
                    loaded = self._dead.pop(resident.id, None) or self._models.pop(resident.id)
                    self._jobs.close(loaded, grace, functools.partial(self._after_close, resident))
                    self._box.loaded = list(self._models)

    # ---- called by the jobs, in their threads

    def _open_engine(self, suited: Suited) -> Engine:
        path = suited.need.path
        if self._engine is not None:
            return self._engine(path, suited.settings, self._post)
        return open_engine(path, suited.settings, self._post, suited.header, self.store.digest(path), suited.adapters)

    def _report(self, id: str, done: int, total: int | None) -> None:
        if watcher := self._watching.get(id):
            watcher(done, total)

    def held(self) -> MemoryUse:
        with self._lock:
            return self._plan.held()

    def _after_fetch(self, id: str, outcome: Suited | Exception, room: MemoryUse) -> None:
        with self._lock:
            self._watching.pop(id, None)
            if isinstance(outcome, Exception):
                self._fail(id, outcome, room)
            else:
                self._suited[id] = outcome
                self._plan.fetched(id, outcome.need, room)
            self._decide()

    def _after_load(self, id: str, outcome: Loaded | Exception, room: MemoryUse) -> None:
        with self._lock:
            self._box.loading = ""
            suited = self._suited.pop(id)
            if isinstance(outcome, Exception):
                self._fail(id, outcome, room)
            elif not self._closed:
                self._models[id] = outcome
                self.failures.forget(id)
                self.set_aside.forget(id)
                self._box.loaded = list(self._models)
                for callback in self._on_loaded:
                    callback(outcome)
                memory = max(outcome.memory.ram, outcome.memory.vram) / 1e6
                log.info("loaded %s in %.1f s; it takes %.0f MB", id, outcome.seconds, memory)
                old = self._stats
                self._stats = dataclasses.replace(old, loads=old.loads + 1, load_seconds=old.load_seconds + outcome.seconds)
                # The measured figure lacks pages that no request has touched yet.
                use = outcome.memory.at_least(suited.need.least)
                self._plan.loaded(id, use, room, time.monotonic(), outcome.engine.info.kind)
            self._decide()
        if isinstance(outcome, Loaded):
            if self._closed:
                outcome.engine.close()
            else:
                outcome.engine.on_death(functools.partial(self._after_death, outcome, time.monotonic()))

    def _after_death(self, loaded: Loaded, began: float, error: EngineDied) -> None:
        """Called in the engine's thread when that has ended by an error."""
        with self._lock:
            if self._closed or self._models.get(id := loaded.spec.id) is not loaded:
                return
            self._dead[id] = self._models.pop(id)
            self._box.loaded = list(self._models)
            self.failures.death(id, error, time.monotonic() - began)
            self._stats = dataclasses.replace(self._stats, deaths=self._stats.deaths + 1)
            self._plan.died(id)
            self._decide()

    def _after_close(self, resident: Resident, room: MemoryUse) -> None:
        log.info("unloaded %s", resident.id)
        with self._lock:
            self._stats = dataclasses.replace(self._stats, unloads=self._stats.unloads + 1)
            if gone := self._gone.pop(resident, None):
                gone.set_result(None)
            self._plan.closed(room)
            self._decide()

    def _fail(self, id: str, error: Exception, room: MemoryUse) -> None:
        if not self._closed:
            self.failures.load(id, error)
        self._stats = dataclasses.replace(self._stats, failures=self._stats.failures + 1)
        self._plan.failed(id, error, room)
