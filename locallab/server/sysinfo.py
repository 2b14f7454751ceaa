"""What /system/info tells: the machine, the build, this process, the loaded models."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import psutil
from msgspec import Meta

from locallab import hardware
from locallab.engine import EngineStats, build_features
from locallab.pool import Loaded, PoolStats
from locallab.tunnel import TunnelFacts

Bytes = Annotated[int, Meta(ge=0)]


class Cpu(msgspec.Struct):
    model: str
    physical_cores: int
    logical_cores: int
    threads: Annotated[int, Meta(description="threads the engine uses by default")]
    flags: Annotated[list[str], Meta(description="instruction sets that llama.cpp has kernels for")]


class MachineMemory(msgspec.Struct):
    """What this process may use, within the limits of a container."""

    total_bytes: Bytes
    available_bytes: Bytes


class Gpu(msgspec.Struct):
    """What the driver does not tell is null."""

    index: int
    name: str | None
    total_bytes: Bytes | None
    free_bytes: Bytes | None
    compute_capability: str | None
    driver: str | None
    load_percent: int | None


class Disk(msgspec.Struct):
    path: Annotated[str, Meta(description="where weights and state lie")]
    total_bytes: Bytes
    free_bytes: Bytes


class Machine(msgspec.Struct):
    platform: str
    python: str
    versions: Annotated[dict[str, str | None], Meta(description="of the packages that matter")]
    cpu: Cpu
    memory: MachineMemory
    gpus: list[Gpu]
    disk: Disk


class Build(msgspec.Struct):
    """The llama.cpp that is loaded."""

    llama_cpp_python: str
    gpu_offload: Annotated[bool, Meta(description="whether it can use a GPU")]
    cuda: Annotated[bool, Meta(description="whether it was built for CUDA")]
    mmap: bool
    miscompiled_amx: Annotated[str | None, Meta(description="the compiler that got AMX wrong, which then is not used")]
    system_info: str


class Process(msgspec.Struct):
    """This server."""

    pid: int
    threads: int
    resident_bytes: Annotated[int, Meta(description="memory it holds, weights that are mapped files included")]


class MemoryFigures(msgspec.Struct):
    """Measured while the model was loaded."""

    ram_bytes: Bytes
    vram_bytes: Bytes


class LoadedModel(msgspec.Struct):
    """A model that answers, with the figures it really has."""

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
    loaded_at: Annotated[int, Meta(description="seconds since the epoch")]
    load_seconds: float
    stats: EngineStats


class SystemInfo(msgspec.Struct):
    """The machine, the build, this process, and the loaded models."""

    service: Literal["locallab"]
    version: str
    uptime_seconds: float
    public_url: Annotated[str | None, Meta(description="where the server can be reached from the internet; null: nowhere")]
    tunnel: Annotated[TunnelFacts | None, Meta(description="how the public address stands; null: none was asked for")]
    process: Process
    system: Machine
    build: Build
    model: Annotated[LoadedModel | None, Meta(description="the model that answers requests naming none")]
    models: Annotated[list[LoadedModel], Meta(description="every loaded model, last used first")]
    loads: PoolStats


def machine() -> Machine:
    """Asks the system; takes milliseconds."""
    return msgspec.convert(hardware.facts(), Machine)


def build() -> Build:
    return msgspec.convert(build_features(), Build)


def loaded_model(loaded: Loaded) -> LoadedModel:
    info = loaded.engine.info
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
        loaded_at=loaded.created,
        load_seconds=round(loaded.seconds, 3),
        stats=loaded.engine.stats(),
    )


def process() -> Process:
    this = psutil.Process()
    return Process(this.pid, this.num_threads(), this.memory_info().rss)
