"""How a model fits this machine, as LocalLab's model routes show it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from locallab.errors import LocalLabError
from locallab.models.spec import ModelSpec
from locallab.pool import Pool
from locallab.pool.fitting import Fitting, fitting

Count = Annotated[int, Meta(ge=0)]
LINE = Meta(description="the choice, and what did not fit, in a line")
APPROXIMATE = Annotated[bool, Meta(description="estimated from the size, without the file")]


class ShortFit(msgspec.Struct):
    """Whether and how a model fits this machine; null: it is not known."""

    fits: bool | None
    reason: Annotated[str, LINE]
    approximate: APPROXIMATE = False
    context: Annotated[Count | None, Meta(description="tokens one request may use")] = None
    total_bytes: Annotated[Count | None, Meta(description="memory that it takes")] = None
    gpu_bytes: Annotated[Count | None, Meta(description="of it on the GPU")] = None
    tokens_per_second: Annotated[float | None, Meta(description="to be expected for one request")] = None


class Load(msgspec.Struct, kw_only=True):
    """One way to load a model, with the memory that it takes."""

    fits: bool
    context: Count
    gpu_layers: int
    n_cpu_moe: int
    kv_type: str
    kv_layout: str
    parallel: Count
    kv_tokens: Count
    requests_at_once: Count
    weights_bytes: Count
    kv_bytes: Count
    state_bytes: Count
    compute_bytes: Count
    gpu_bytes: Count
    ram_bytes: Count
    total_bytes: Count


class Speed(msgspec.Struct, kw_only=True):
    """The expected speed of one request, and what a token reads from each memory."""

    tokens_per_second: float
    gpu_bytes: Count
    ram_bytes: Count
    gpu_bandwidth: Annotated[Count, Meta(description="bytes a second")]
    ram_bandwidth: Annotated[Count, Meta(description="bytes a second")]
    gpu_known: bool
    ram_measured: bool
    threads: Annotated[Count, Meta(description="CPU threads, if they and not the RAM are the limit; else 0")]


class Chosen(Load, kw_only=True):
    cache_ram_mib: Annotated[Count, Meta(description="for prefixes in RAM")]
    speed: Annotated[Speed | None, Meta(description="null: it makes no text")]
    reason: Annotated[str, LINE]


class FreeGpu(msgspec.Struct):
    name: str
    free_bytes: Annotated[Count | None, Meta(description="null: it shares the RAM")]


class FreeMemory(msgspec.Struct):
    """What models may take here, with the memory of those that are loaded."""

    ram_bytes: Count
    gpus: list[FreeGpu]
    threads: Count
    gpu_build: bool


class FitReport(msgspec.Struct, kw_only=True):
    """How a model fits this machine, and other ways to load it by context and type of the KV cache."""

    model: str
    approximate: APPROXIMATE
    machine: FreeMemory
    weights_bytes: Count
    layers: Count
    context_trained: Count | None
    kv_bytes_per_token: dict[str, float]
    table: list[Load]
    chosen: Chosen


def short_fit(machine: Fitting, spec: ModelSpec) -> ShortFit:
    """Return how the model fits, or why that is not known. Reads its file."""
    try:
        fit = machine.fit(spec)
    except LocalLabError as error:
        return ShortFit(None, str(error))
    speed = fit.speed.tokens_per_second or None
    return ShortFit(
        fit.fits, fit.reason, fit.approximate, fit.load.context, fit.estimate.total, fit.estimate.gpu, speed and round(speed, 1)
    )


def free_memory(machine: Fitting) -> FreeMemory:
    """Return what models may take."""
    return msgspec.convert(machine.room, FreeMemory)


def fit_report(pool: Pool, spec: ModelSpec) -> FitReport:
    """Return how the model fits if all that are loaded make room. Blocks. Raises SourceError, UnknownModel, ConfigError."""
    found: dict[str, Any] = fitting(pool).report(spec).as_dict()
    return msgspec.convert(found, FitReport, strict=False)
