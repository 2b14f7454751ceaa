"""The routes of machine and service: /, /system/info, /metrics, /health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import psutil
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from locallab import hardware
from locallab.engine import EngineStats, ModelInfo, build_features
from locallab.engine.devices import Kind as DeviceKind
from locallab.engine.llama import Memory
from locallab.engine.request import MissReason, Tier
from locallab.pool import Loaded, Pool, PoolStats
from locallab.server.cluster import Cluster, Replica
from locallab.server.dialects.native.metrics import Metrics
from locallab.server.dialects.native.replica_metrics import exposition
from locallab.server.endpoint import Endpoint
from locallab.server.errors import RETRY_AFTER
from locallab.server.reply import reply
from locallab.server.roles import is_admin
from locallab.settings import Layout
from locallab.tunnel import TunnelFacts
from locallab.version import __version__

SERVICE: Literal["locallab"] = "locallab"

ModelName = Annotated[str | None, Meta(description="the model that answers requests naming none; null: there is none")]


Failed = Annotated[
    dict[str, str],
    Meta(description="models whose load or engine has failed, with the reason; requests load them again"),
]


class Root(msgspec.Struct):
    service: Literal["locallab"]
    version: str
    model: ModelName


class Health(msgspec.Struct, omit_defaults=True):
    status: Literal["healthy"]
    service: Literal["locallab"]
    version: str
    model: ModelName
    restarts: Annotated[int, Meta(description="how often the server has died and been started again; absent: never")] = 0
    last_end: Annotated[str, Meta(description="what ended the server last")] = ""
    set_aside: Annotated[
        dict[str, str], Meta(description="models that are not loaded again by themselves, with what happened to each")
    ] = {}
    failed: Failed = {}


class Ready(msgspec.Struct):
    status: Literal["ready"]
    service: Literal["locallab"]
    model: str


class Live(msgspec.Struct):
    status: Literal["alive"]
    service: Literal["locallab"]


Bytes = Annotated[int, Meta(ge=0)]


class Cpu(msgspec.Struct):
    model: str
    physical_cores: int
    logical_cores: int
    threads: Annotated[int, Meta(description="default number of engine threads")]
    flags: Annotated[list[str], Meta(description="instruction sets that llama.cpp has kernels for")]


class MachineMemory(msgspec.Struct):
    """Memory this process may use, within the limits of a container."""

    total_bytes: Bytes
    available_bytes: Bytes


class Gpu(msgspec.Struct):
    """A GPU; figures that the driver does not report are null."""

    index: int
    name: str | None
    total_bytes: Bytes | None
    free_bytes: Bytes | None
    compute_capability: str | None
    driver: str | None
    load_percent: int | None


class Disk(msgspec.Struct):
    path: Annotated[str, Meta(description="folder of weights and state")]
    total_bytes: Bytes
    free_bytes: Bytes


class Machine(msgspec.Struct):
    platform: str
    python: str
    versions: Annotated[dict[str, str | None], Meta(description="versions of the packages that matter")]
    cpu: Cpu
    memory: MachineMemory
    gpus: list[Gpu]
    disk: Disk


class Device(msgspec.Struct):
    """A device that tensors can be on; its name is what --override-tensor takes."""

    name: str
    description: str
    kind: DeviceKind


class Build(msgspec.Struct):
    """The build of llama.cpp."""

    llama_cpp_python: str
    gpu_offload: Annotated[bool, Meta(description="whether it can use a GPU")]
    cuda: Annotated[bool, Meta(description="whether it was built for CUDA")]
    mmap: bool
    miscompiled_amx: Annotated[str | None, Meta(description="the compiler that miscompiled AMX, which is then disabled")]
    system_info: str
    devices: list[Device]


class OpenMP(msgspec.Struct):
    """The runtime of the threads that compute on the CPU."""

    name: Literal["LLVM", "GNU", "none"]
    version: str | None
    path: str | None
    reason: Annotated[str, Meta(description="why it is this one")]


class Process(msgspec.Struct):
    """This process."""

    pid: int
    threads: int
    openmp: OpenMP
    resident_bytes: Annotated[int, Meta(description="resident memory, including mapped weights")]


class MemoryFigures(msgspec.Struct):
    """Memory of a model, measured during its load."""

    ram_bytes: Bytes
    vram_bytes: Bytes


class CacheFigures(msgspec.Struct):
    """What prompts got from the prefix cache since the model was loaded."""

    requests: Annotated[dict[MissReason, int], Meta(description="prompts by the reason why the cache had no more of them")]
    missed_tokens: Annotated[dict[MissReason, int], Meta(description="tokens of prompts that it did not have, by the reason")]
    hit_tokens: Annotated[dict[Tier, int], Meta(description="tokens of prompts that it had, by where they were")]


MemoryKind = Annotated[
    Memory | UnsetType,
    Meta(
        description="what a model of text keeps of earlier tokens: all of them (attention), in some layers the last ones only"
        " (window), a running state (recurrent), or that beside attention (hybrid)"
    ),
]
KvLayout = Annotated[
    Layout | UnsetType,
    Meta(description="unified: requests share one KV cache and the cells of a prefix; streams: each has a part of its own"),
]
PrefixReuse = Annotated[
    Literal["prefix", "snapshots", "none"],
    Meta(
        description="what the prefix cache can reuse of an earlier prompt: any prefix; one that ends where the state was saved,"
        " since a window or a running state cannot be cut (snapshots); or nothing, where no text is made"
    ),
]


class LoadedModel(msgspec.Struct, kw_only=True):
    """A loaded model with its actual figures."""

    name: str
    type: str
    architecture: str
    device: str
    size_bytes: Bytes
    parameters: int
    context: Annotated[int, Meta(description="tokens one request may use")]
    trained_context: int
    kv_tokens: Annotated[int, Meta(description="tokens the KV pool holds for all requests together")]
    memory: MemoryFigures
    memory_kind: MemoryKind = UNSET
    kv_layout: KvLayout = UNSET
    prefix_reuse: PrefixReuse
    fit: Annotated[str, Meta(description="how it was fitted to this machine, and why")]
    loaded_at: Annotated[int, Meta(description="seconds since the epoch")]
    load_seconds: float
    stats: EngineStats
    cache: CacheFigures


class SystemInfo(msgspec.Struct):
    """The machine, the build, this process, and the loaded models."""

    service: Literal["locallab"]
    version: str
    uptime_seconds: float
    public_url: Annotated[str | None, Meta(description="public URL of the server; null: none")]
    tunnel: Annotated[TunnelFacts | None, Meta(description="status of the tunnel; null: no tunnel")]
    process: Process
    system: Machine
    build: Build
    model: Annotated[LoadedModel | None, Meta(description="the model that answers requests naming none")]
    models: Annotated[list[LoadedModel], Meta(description="all loaded models, last used first")]
    failed: Failed
    loads: PoolStats
    restarts: Annotated[int, Meta(description="how often the server has died and been started again")]
    cpu_usage: Annotated[float, Meta(description="load of the CPU since the last request for this, in percent")]
    memory_usage: Annotated[float, Meta(description="used memory of the machine, in percent")]
    gpu_info: Annotated[Gpu | None, Meta(description="the first GPU; null: none")]
    active_model: ModelName
    uptime: Annotated[float, Meta(description="the same as uptime_seconds")]
    request_count: Annotated[int, Meta(description="requests that have ended")]
    replicas: Annotated[
        list[Replica] | UnsetType, Meta(description="of a cluster, what has its models; absent: it is none")
    ] = UNSET


def machine() -> Machine:
    """Query the system; takes milliseconds."""
    return msgspec.convert(hardware.facts(), Machine)


def build() -> Build:
    return msgspec.convert(build_features(), Build)


def kv_facts(info: ModelInfo) -> dict[str, Any]:
    """Return what a model keeps of earlier tokens, where, and what that means for sharing: see MemoryKind and the others."""
    kept = {"memory_kind": info.memory, "kv_layout": info.kv_layout} if info.kind == "text" else {}
    return {**kept, "prefix_reuse": info.reuse}


def loaded_model(loaded: Loaded) -> LoadedModel:
    info, totals = loaded.engine.info, loaded.engine.totals
    return LoadedModel(
        name=loaded.spec.id,
        type=info.description,
        architecture=info.architecture,
        device=info.device,
        size_bytes=info.size_bytes,
        parameters=info.n_params,
        context=info.context,
        trained_context=info.n_ctx_train,
        kv_tokens=info.kv_tokens,
        memory=MemoryFigures(loaded.memory.ram, loaded.memory.vram),
        **kv_facts(info),
        fit=loaded.reason,
        loaded_at=loaded.created,
        load_seconds=round(loaded.seconds, 3),
        stats=loaded.engine.stats(),
        cache=CacheFigures(totals.cache_requests, totals.missed_tokens, totals.hit_tokens),
    )


def process() -> Process:
    this = psutil.Process()
    openmp = msgspec.convert(build_features()["openmp"], OpenMP)
    return Process(this.pid, this.num_threads(), openmp, this.memory_info().rss)


class System:
    """The routes. `machine`, `build`, `public_url` and `tunnel` return the facts to report."""

    def __init__(
        self,
        pool: Pool,
        metrics: Metrics,
        machine: Callable[[], Machine] = machine,
        build: Callable[[], Build] = build,
        public_url: Callable[[], str | None] = lambda: None,
        tunnel: Callable[[], TunnelFacts | None] = lambda: None,
        cluster: Cluster | None = None,
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._machine = machine
        self._build = build
        self._public_url = public_url
        self._tunnel = tunnel
        self._cluster = cluster
        self._started = time.monotonic()

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint("/", self.root, tag="system", answer=Root, plain=True),
            Endpoint("/system/info", self.info, tag="system", answer=SystemInfo),
            Endpoint("/metrics", self.metrics, tag="system", media_type="text/plain"),
            Endpoint("/health", self.health, tag="system", answer=Health),
            Endpoint("/health/ready", self.ready, tag="system", answer=Ready, errors=(503,)),
            Endpoint("/health/live", self.live, tag="system", answer=Live),
        ]

    async def root(self, request: Request) -> Response:
        """Identify the service.

        Clients that accept neither JSON nor HTML by name get the words that Ollama's clients look for.
        """
        accept = request.headers.get("accept", "")
        if "text/html" not in accept and "application/json" not in accept:
            return PlainTextResponse("Ollama is running")
        return reply(Root(SERVICE, __version__, self._current()))

    async def info(self, request: Request) -> Response:
        """Describe the machine, the build, and the loaded models with their figures."""
        pool = self._pool
        models = {each.spec.id: loaded_model(each) for each in pool.loaded}
        system = await asyncio.to_thread(self._machine)
        uptime = round(time.monotonic() - self._started, 3)
        return reply(
            SystemInfo(
                service=SERVICE,
                version=__version__,
                uptime_seconds=uptime,
                public_url=self._public_url(),
                tunnel=self._tunnel(),
                process=await asyncio.to_thread(process),
                system=system,
                build=await asyncio.to_thread(self._build),
                model=models.get(self._current() or ""),
                models=list(models.values()),
                failed=self._failed(),
                loads=pool.stats(),
                restarts=pool.supervision.restarts,
                cpu_usage=psutil.cpu_percent(),
                memory_usage=psutil.virtual_memory().percent,
                gpu_info=next(iter(system.gpus), None),
                active_model=self._current(),
                uptime=uptime,
                request_count=self._metrics.requests,
                replicas=[each.replica for each in await self._cluster.ask()] if self._cluster else UNSET,
            )
        )

    async def metrics(self, request: Request) -> Response:
        """Export counters, gauges and histograms for Prometheus."""
        accept = request.headers.get("accept", "")
        if self._cluster is None:
            body, content_type = self._metrics.exposition(accept, by_key=is_admin(request))
        else:
            front, _ = self._metrics.exposition("", by_key=is_admin(request))
            told = await self._cluster.ask("metrics")
            body, content_type = await asyncio.to_thread(exposition, front, told, accept)
        return Response(body, headers={"content-type": content_type})

    async def health(self, request: Request) -> Response:
        """Report that the service is up."""
        told = self._pool.supervision
        state = self._current(), told.restarts, told.cause, self._pool.set_aside.reasons, self._failed()
        return reply(Health("healthy", SERVICE, __version__, *state))

    async def ready(self, request: Request) -> Response:
        """Report whether a model is loaded, or is reloaded by the next request."""
        model, loading = self._current(), self._pool.stats().loading
        if model is None and self._pool.default and not loading:
            model = self._pool.default.id  # unloaded while idle: the next request reloads it
        if model is not None and (self._cluster is None or await self._cluster.ready()):
            return reply(Ready("ready", SERVICE, model))
        body = {"status": "not ready", "service": SERVICE, "detail": "a model is loading" if loading else "no model is loaded"}
        return reply(body, 503, {"retry-after": str(RETRY_AFTER)})

    async def live(self, request: Request) -> Response:
        """Report that the process responds."""
        return reply(Live("alive", SERVICE))

    def _failed(self) -> dict[str, str]:
        aside = self._pool.set_aside.reasons
        return {id: reason for id, reason in self._pool.failures.reasons.items() if id not in aside}

    def _current(self) -> str | None:
        current = self._pool.current
        return self._cluster.default if self._cluster else current.spec.id if current else None
