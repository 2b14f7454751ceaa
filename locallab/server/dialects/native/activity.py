"""What the server does now, measured for those who watch, once for all of them, and only while there are any."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
from collections.abc import Callable
from typing import Annotated

import msgspec
import psutil
from msgspec import Meta

from locallab import hardware
from locallab.engine import Engine, Kind
from locallab.engine.kv_map import KvMap
from locallab.engine.view import EngineView, RequestView, State
from locallab.pool import Loaded, Pool
from locallab.server.cluster import Replica
from locallab.server.dialects.native.system import Bytes, CacheFigures, Failed, MemoryFigures
from locallab.server.streaming import event

INTERVAL = 0.25
"""Seconds from one snapshot to the next."""
PATIENCE = 0.1
"""Seconds to wait for an engine in the middle of a step; its view then is one snapshot late."""
WINDOW = 1.0
"""Least seconds over which rates are taken."""
MEASURING, RARELY = 2.0, 30.0
"""Least and most seconds from one measurement of the memory to the next."""
SHARE = 0.0025
"""Share of the time that measuring it may take: some drivers of GPUs take long to answer."""
GRAIN = 1 << 20
"""Bytes to which figures of memory are rounded, so that they rest while nothing happens."""
MOST_SHOWN = 100
"""Requests in a message, those first that have run for longest."""

Tokens = Annotated[int, Meta(ge=0)]

log = logging.getLogger(__name__)


class ActiveRequest(msgspec.Struct):
    """A request that an engine has."""

    id: Annotated[int, Meta(description="its own among those of the model since that was loaded")]
    model: Annotated[str, Meta(description="the model, with the adapters that are on")]
    key: Annotated[str | None, Meta(description="name of its key; null: none")]
    state: Annotated[State, Meta(description="in the queue, its prompt is computed, its answer is")]
    prompt_tokens: Tokens
    cached_tokens: Annotated[Tokens, Meta(description="tokens of the prompt that came from the prefix cache")]
    computed_tokens: Annotated[Tokens, Meta(description="tokens of prompt and answer that are in the KV cache")]
    answer_tokens: Tokens
    age_seconds: float
    ttft_seconds: Annotated[float | None, Meta(description="seconds until the first token came; null: it has not yet")]
    replica: Annotated[str | None, Meta(description="of a cluster, the replica that has it")] = None


class ActiveModel(msgspec.Struct):
    """A loaded model."""

    name: str
    kind: Kind
    running: int
    waiting: int
    parallel: Annotated[int, Meta(description="requests that it computes at once")]
    prompt_rate: Annotated[float, Meta(description="tokens of prompts computed a second, over the last second")]
    answer_rate: Annotated[float, Meta(description="tokens of answers a second, over the last second")]
    step_seconds: Annotated[float | None, Meta(description="mean duration of a step in that time; null: there was none")]
    memory: MemoryFigures
    stored_bytes: Annotated[int, Meta(description="host RAM that prefixes take")]
    stored_limit_bytes: Annotated[int, Meta(description="host RAM that prefixes may take")]
    cache: CacheFigures
    kv: Annotated[KvMap | None, Meta(description="who holds the cells of the KV cache; null: the model makes no text")]
    replica: Annotated[str | None, Meta(description="of a cluster, the replica that has it")] = None


class GpuMemory(msgspec.Struct):
    name: str | None
    total_bytes: Bytes | None
    free_bytes: Bytes | None
    load_percent: int | None


class MemoryNow(msgspec.Struct):
    """Memory, in whole MiB."""

    process_bytes: Annotated[int, Meta(description="resident memory of the server, including mapped weights")]
    total_bytes: Bytes
    available_bytes: Bytes
    gpus: list[GpuMemory]


class Loading(msgspec.Struct):
    """A model that is fetched or loaded."""

    name: str
    waiting: Annotated[int, Meta(description="requests that wait for it")]


class Activity(msgspec.Struct):
    """What the server does now. Keys with the role use see the requests of their own key only; the counts are of all."""

    running: int
    waiting: int
    requests: Annotated[list[ActiveRequest], Meta(description=f"the first {MOST_SHOWN} of them, running ones first")]
    models: Annotated[list[ActiveModel], Meta(description="the loaded models, last used first")]
    loading: list[Loading]
    failed: Failed
    memory: MemoryNow
    replicas: Annotated[
        list[Replica], Meta(description="of a cluster, what has its models; the memory is that of its front")
    ] = []


def memory_now() -> MemoryNow:
    """Measure the memory; takes milliseconds."""
    machine = hardware.memory()
    gpus = [
        GpuMemory(each["name"], _whole(each["total_bytes"]), _whole(each["free_bytes"]), each["load_percent"])
        for each in hardware.gpus()
    ]
    process = psutil.Process().memory_info().rss
    return MemoryNow(_whole(process) or 0, _whole(machine["total_bytes"]) or 0, _whole(machine["available_bytes"]) or 0, gpus)


def pause_after(seconds: float) -> float:
    """Return the seconds until the memory is measured again, which has just taken so many."""
    return min(RARELY, max(MEASURING, seconds / SHARE))


def _whole(count: int | None) -> int | None:
    return None if count is None else count // GRAIN * GRAIN


class _Observed:
    """One engine's last views, as many as rates are made of."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._views: collections.deque[EngineView] = collections.deque()
        self._asked: asyncio.Future[EngineView] | None = None
        self._failed = False

    @property
    def last(self) -> EngineView | None:
        return self._views[-1] if self._views else None

    def ask(self) -> asyncio.Future[EngineView]:
        """Ask for a view, unless one is due."""
        if self._asked is None:
            self._asked = asyncio.wrap_future(self._engine.view())
        return self._asked

    def take(self) -> None:
        """Take the view that was asked for, if it has come."""
        asked = self._asked
        if asked is None or not asked.done():
            return
        self._asked = None
        if error := asked.exception():
            if not self._failed:
                log.error("an engine cannot be watched", exc_info=error)
            self._failed = True
            return
        self._views.append(asked.result())
        while len(self._views) > 2 and self._views[-1].at - self._views[1].at >= WINDOW:
            self._views.popleft()

    def rates(self) -> tuple[float, float, float | None]:
        """Return tokens of prompts and of answers a second, and the mean duration of a step."""
        first, last = self._views[0], self._views[-1]
        seconds, steps = last.at - first.at, last.steps - first.steps
        if not seconds:
            return 0.0, 0.0, None
        step = round((last.step_seconds - first.step_seconds) / steps, 6) if steps else None
        prompt = max(0, last.prompt_tokens - first.prompt_tokens) / seconds
        return round(prompt, 1), round((last.answer_tokens - first.answer_tokens) / seconds, 1), step


class Snapshot:
    """The activity at one moment; `requests` has them with the id of who sent them."""

    def __init__(self, activity: Activity, requests: list[tuple[str, ActiveRequest]]) -> None:
        self.activity = activity
        self.requests = requests
        self._encoded: dict[str | None, bytes] = {}

    def same(self, other: Snapshot | None) -> bool:
        return other is not None and self.activity == other.activity and self.requests == other.requests

    def encoded(self, caller: str | None) -> bytes:
        """Return the server-sent event for this caller alone, None for one that may see all; made once for each."""
        if caller not in self._encoded:
            mine = [each for id, each in self.requests if caller in (None, id)][:MOST_SHOWN]
            self._encoded[caller] = event(msgspec.structs.replace(self.activity, requests=mine))
        return self._encoded[caller]


class Sampler:
    """Makes snapshots while somebody watches. For the event loop only.

    `current` is the last one that differs from the one before, None at the end.
    """

    def __init__(self, pool: Pool, memory: Callable[[], MemoryNow] = memory_now) -> None:
        self._pool = pool
        self._memory = memory
        self._observed: dict[Engine, _Observed] = {}
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.current: Snapshot | None = None

    @property
    def works(self) -> bool:
        return self._task is not None

    def start(self, stopping: asyncio.Event) -> None:
        """Begin, unless it works; it ends when the server is `stopping`."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(stopping))

    def stop(self) -> None:
        """End, and forget all: nobody watches any more."""
        if self._task is not None:
            self._task.cancel()
        self._forget()

    async def after(self, seen: Snapshot | None, seconds: float) -> bool:
        """Wait until there is another snapshot than `seen`, at most so long; return whether there is or may be one."""
        changed = self._changed
        if self.works and (self.current is None or self.current is seen):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), seconds)
        return self.works

    async def _work(self, stopping: asyncio.Event) -> None:
        loop, memory, due = asyncio.get_running_loop(), None, 0.0
        try:
            while not stopping.is_set():
                began = loop.time()
                if memory is None or began >= due:
                    memory = await asyncio.to_thread(self._memory)
                    due = loop.time() + pause_after(loop.time() - began)
                snapshot = await self._snapshot(memory)
                if not snapshot.same(self.current):
                    self.current = snapshot
                    self._tell()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stopping.wait(), max(INTERVAL / 2, began + INTERVAL - loop.time()))
        except Exception:
            log.exception("what the server does cannot be shown")
        if self._task is asyncio.current_task():
            self._forget()

    def _forget(self) -> None:
        self._task = None
        self.current = None
        self._observed.clear()
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _snapshot(self, memory: MemoryNow) -> Snapshot:
        models = self._pool.loaded
        self._observed = {each.engine: self._observed.get(each.engine) or _Observed(each.engine) for each in models}
        asked = [each.ask() for each in self._observed.values()]
        if asked:
            await asyncio.wait(asked, timeout=PATIENCE)
        shown, requests = [], []
        for loaded in models:
            observed = self._observed[loaded.engine]
            observed.take()
            view = observed.last
            if view is not None:
                shown.append(_model(loaded, view, observed.rates()))
                requests += [(each.caller.id, _request(loaded, each)) for each in view.requests]
        requests.sort(key=lambda each: (each[1].state == "waiting", -each[1].age_seconds))
        return Snapshot(
            Activity(
                running=sum(each.running for each in shown),
                waiting=sum(each.waiting for each in shown),
                requests=[],
                models=shown,
                loading=[Loading(*each) for each in self._pool.loading.items()],
                failed=dict(self._pool.failures.reasons),
                memory=memory,
            ),
            requests,
        )


def _model(loaded: Loaded, view: EngineView, rates: tuple[float, float, float | None]) -> ActiveModel:
    engine = loaded.engine
    totals = engine.totals
    prompt, answer, step = rates
    return ActiveModel(
        name=loaded.spec.id,
        kind=engine.info.kind,
        running=view.running,
        waiting=view.waiting,
        parallel=engine.info.parallel,
        prompt_rate=prompt,
        answer_rate=answer,
        step_seconds=step,
        memory=MemoryFigures(loaded.memory.ram, loaded.memory.vram),
        stored_bytes=view.stored_bytes,
        stored_limit_bytes=view.stored_limit,
        cache=CacheFigures(dict(totals.cache_requests), dict(totals.missed_tokens), dict(totals.hit_tokens)),
        kv=view.kv,
    )


def _request(loaded: Loaded, view: RequestView) -> ActiveRequest:
    return ActiveRequest(
        id=view.id,
        model=":".join([loaded.spec.id, *(["+".join(view.adapters)] if view.adapters else [])]),
        key=view.caller.name or None,
        state=view.state,
        prompt_tokens=view.prompt_tokens,
        cached_tokens=view.cached_tokens,
        computed_tokens=view.computed_tokens,
        answer_tokens=view.answer_tokens,
        age_seconds=round(view.age_seconds, 2),
        ttft_seconds=None if view.ttft_seconds is None else round(view.ttft_seconds, 3),
    )
