"""The choice of how to load a model on this machine: GPU layers, context, KV type, concurrent requests. Pure.

The first of these that fits is chosen; configured values are never changed:

1. all layers on the GPU, with the wanted context, reduced to FLOOR if necessary;
2. as many layers on the GPU as fit with the wanted context, at most DEFAULT_CONTEXT, if that is a good part of them;
3. all layers on the CPU, with the wanted context, reduced to FLOOR if necessary;
4. all layers on the GPU, then all on the CPU, with a context reduced to LEAST.

For one context the KV pool shrinks first, then fewer requests run concurrently, then the KV cache is compressed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from locallab.fit.estimates import FLOAT, Estimate, Load, estimate
from locallab.fit.explain import reason
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape
from locallab.memory_model import DEFAULT_CONTEXT, EMBEDDING_BATCH, OUTPUT_BYTES, default_pool, whole_cells
from locallab.settings import EngineSettings, KvType

FLOOR, LEAST = 4096, 512
PARALLEL = (64, 16), (4, 1)
"""Concurrent requests to try, in two rounds."""

SHARE = 4
"""A GPU is used only if it takes more than one in this many layers."""

MIB = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Configured settings; None is free. `usual_context` is the registry's context, which may be lowered."""

    context: int | None = None
    kv_tokens: int | None = None
    kv_type: KvType | None = None
    gpu_layers: int | None = None
    parallel: int | None = None
    batch: int | None = None
    cache_ram_mib: int | None = None
    usual_context: int | None = None

    @classmethod
    def of(cls, configured: Mapping[str, Any], usual_context: int | None = None) -> Wishes:
        """Select the wishes among the configured engine settings."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in configured.items() if name in names}, usual_context=usual_context)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The choice. With `fits` False nothing fits, and `load` is the smallest one tried. `reason` describes and explains it in a
    line; `approximate`: it is based on the size of the weights, without the file; `full`: nothing was reduced to fit."""

    fits: bool
    load: Load
    estimate: Estimate
    cache_ram_mib: int
    reason: str
    approximate: bool = False
    full: bool = False

    @property
    def layer(self) -> dict[str, Any]:
        """The chosen settings as a layer for `settings.resolve`, below the configured ones."""
        names = ("gpu_layers", "context", "kv_tokens", "kv_type", "parallel")
        return {**{name: getattr(self.load, name) for name in names}, "cache_ram_mib": self.cache_ram_mib}


def choose(shape: Shape, machine: Machine, wishes: Wishes = Wishes(), *, approximate: bool = False) -> Fit:
    """Choose how to load a model of this shape on this machine."""
    wanted = EngineSettings().cache_ram_mib if wishes.cache_ram_mib is None else wishes.cache_ram_mib
    cache = wishes.cache_ram_mib or 0
    first: tuple[Load, Estimate] | None = None
    for load in _loads(shape, machine, wishes):
        needs = estimate(shape, load, max(1, len(machine.gpus)))
        first = first or (load, needs)
        fits = machine.holds(needs.ram + cache * MIB, needs.gpu)
        if fits:
            break
    assert first is not None, "there is always one to try"
    if wishes.cache_ram_mib is None:
        left = machine.usable_ram - needs.ram - (needs.gpu if machine.shared else 0)
        cache = max(0, min(wanted, left // MIB))
    return Fit(
        fits=fits,
        load=load,
        estimate=needs,
        cache_ram_mib=cache,
        reason=reason(shape, machine, fits, (load, needs), first),
        approximate=approximate,
        full=fits and load == first[0] and cache == wanted,
    )


def _loads(shape: Shape, machine: Machine, wishes: Wishes) -> Iterator[Load]:
    """Yield the loads to try, best first."""
    trained = shape.n_ctx_train if shape.n_ctx_train > 0 else DEFAULT_CONTEXT
    contexts = [wishes.context or wishes.usual_context or min(trained, DEFAULT_CONTEXT)]
    while contexts[-1] > LEAST and not wishes.context:
        contexts.append(max(LEAST, contexts[-1] // 2))
    ample = [each for each in contexts if each >= min(FLOOR, contexts[0])]
    scant = contexts[len(ample) :]
    if not machine.has_gpu:
        places = [0]
    elif wishes.gpu_layers is not None:
        places = [wishes.gpu_layers]
    else:
        places = [-1, 0]
        yield from _variants(shape, wishes, -1, ample)
        context = next((each for each in ample if each <= DEFAULT_CONTEXT), ample[-1])
        total = len(shape.layers) + 1
        for gpu_layers in range(total - 1, total // SHARE, -1):
            yield from _variants(shape, wishes, gpu_layers, [context])
        yield from _variants(shape, wishes, 0, ample)
        ample = []
    for listed in (ample, scant):
        for place in places:
            yield from _variants(shape, wishes, place, listed)


def _variants(shape: Shape, wishes: Wishes, gpu_layers: int, contexts: Iterable[int]) -> Iterator[Load]:
    kv_types: tuple[KvType, ...] = (wishes.kv_type,) if wishes.kv_type else ("f16", "q8_0") if shape.compressible else ("f16",)
    rounds = ((wishes.parallel,),) if wishes.parallel else PARALLEL
    batch = wishes.batch or EngineSettings().batch
    for several in rounds:
        for context, kv_type, parallel in itertools.product(contexts, kv_types, several):
            for pool in _pools(shape, wishes, context, parallel, batch if gpu_layers else EMBEDDING_BATCH):
                yield Load(
                    gpu_layers=gpu_layers,
                    context=min(context, pool),
                    kv_tokens=pool,
                    kv_type=kv_type,
                    parallel=parallel,
                    batch=batch,
                )


def _pools(shape: Shape, wishes: Wishes, context: int, parallel: int, embedding_batch: int) -> list[int]:
    """Return sizes of the KV pool in cells, largest first. An embedding model needs one cell per token computed at once."""
    if wishes.kv_tokens:
        return [whole_cells(wishes.kv_tokens)]
    if shape.embeds:
        widest = OUTPUT_BYTES // FLOAT // max(1, shape.n_vocab)
        return [whole_cells(max(context, min(embedding_batch, widest) if shape.whole else embedding_batch))]
    return list(dict.fromkeys((whole_cells(min(default_pool(context), parallel * context)), whole_cells(context))))
