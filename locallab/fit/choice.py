"""The choice of how to load a model on this machine: GPU layers, context, KV type, concurrent requests. Pure.

The first of these that fits is chosen; configured values are never changed:

1. all layers on the GPU, with the wanted context, reduced to FLOOR if necessary;
2. as many layers on the GPU as fit with the wanted context, at most DEFAULT_CONTEXT, if that is a good part of them;
3. all layers on the CPU, with the wanted context, reduced to FLOOR if necessary;
4. all layers on the GPU, then all on the CPU, with a context reduced to LEAST.

For one context the KV cache shrinks first, then fewer requests run concurrently, then the KV cache is compressed. It holds
whole contexts, so that each may be a stream of its own: on a GPU with all layers as many as GPU_SHARE of the memory left after
the weights has room for, elsewhere as RAM_SHARE of the RAM left after them has, at least two and at most `default_contexts`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from locallab.fit.estimates import FLOAT, Estimate, Load, cache_bytes, estimate, layers_on_gpu, step_bytes
from locallab.fit.explain import reason
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape
from locallab.memory_model import (
    DEFAULT_CONTEXT,
    EMBEDDING_BATCH,
    GPU_SHARE,
    OUTPUT_BYTES,
    RAM_SHARE,
    STEP,
    UBATCH_SHARE,
    default_contexts,
    kv_layout,
    ubatches,
    wanted_layout,
    whole_cells,
)
from locallab.settings import EngineSettings, KvLayout, KvType

FLOOR, LEAST = 4096, 512
PARALLEL = (64, 16), (4, 1)
"""Concurrent requests to try, in two rounds."""

CONTEXTS = (8, 4, 2, 1)
"""Whole contexts to try in the KV cache, after the most."""

SHARE = 4
"""A GPU is used only if it takes more than one in this many layers."""

MIB = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Configured settings; None is free. `usual_context` is the registry's context, which may be lowered."""

    context: int | None = None
    kv_tokens: int | None = None
    kv_type: KvType | None = None
    kv_layout: KvLayout | None = None
    gpu_layers: int | None = None
    parallel: int | None = None
    batch: int | None = None
    ubatch: int | None = None
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
        names = ("gpu_layers", "context", "kv_tokens", "kv_type", "kv_layout", "parallel", "ubatch")
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
        yield from _variants(shape, machine, wishes, -1, ample)
        context = next((each for each in ample if each <= DEFAULT_CONTEXT), ample[-1])
        total = len(shape.layers) + 1
        for gpu_layers in range(total - 1, total // SHARE, -1):
            yield from _variants(shape, machine, wishes, gpu_layers, [context])
        yield from _variants(shape, machine, wishes, 0, ample)
        ample = []
    for listed in (ample, scant):
        for place in places:
            yield from _variants(shape, machine, wishes, place, listed)


def _variants(shape: Shape, machine: Machine, wishes: Wishes, gpu_layers: int, contexts: Iterable[int]) -> Iterator[Load]:
    kv_types: tuple[KvType, ...] = (wishes.kv_type,) if wishes.kv_type else ("f16", "q8_0") if shape.compressible else ("f16",)
    rounds = ((wishes.parallel,),) if wishes.parallel else PARALLEL
    batch = wishes.batch or EngineSettings().batch
    for several in rounds:
        for context, kv_type, parallel in itertools.product(contexts, kv_types, several):
            least = Load(
                gpu_layers=gpu_layers,
                context=context,
                kv_tokens=whole_cells(context),
                kv_type=kv_type,
                parallel=parallel,
                kv_layout="unified",
                batch=batch,
                ubatch=min(STEP if shape.embeds else wishes.ubatch or STEP, batch),
            )
            for pool in _pools(shape, machine, wishes, least):
                yield _with_ubatch(shape, machine, wishes, _with_pool(shape, wishes, least, pool))


def _with_ubatch(shape: Shape, machine: Machine, wishes: Wishes, load: Load) -> Load:
    """Return the load with as many tokens in one go as its share of the GPU memory left after the weights has buffers for. Not
    with a sliding window, whose cache keeps room for them in each stream."""
    if shape.embeds or shape.window or wishes.ubatch:
        return load
    gpus = len(machine.gpus) if load.gpu_layers else 0
    partial = layers_on_gpu(shape, load.gpu_layers) < len(shape.layers)
    loads = [dataclasses.replace(load, ubatch=size) for size in ubatches(load.batch, gpus, partial)]
    free = machine.usable_ram if machine.shared else machine.usable_vram
    room = UBATCH_SHARE * (free - estimate(shape, load).gpu_weights) if len(loads) > 1 else 0
    return next((each for each in loads if step_bytes(shape, each) <= room), loads[-1])


def _with_pool(shape: Shape, wishes: Wishes, load: Load, pool: int) -> Load:
    """Return the load with so many KV cells, in the layout that these allow."""
    context = min(load.context, pool)
    cache = EngineSettings().cache_ram_mib if wishes.cache_ram_mib is None else wishes.cache_ram_mib
    wanted = "unified" if shape.embeds else wanted_layout(wishes.kv_layout or "auto", cache, load.parallel)
    layout = kv_layout(wanted, pool, context, load.parallel, load.gpu_layers != 0)
    return dataclasses.replace(load, context=context, kv_tokens=pool, kv_layout=layout)


def _pools(shape: Shape, machine: Machine, wishes: Wishes, least: Load) -> list[int]:
    """Return sizes of the KV cache in cells, largest first, for a load with one context. An embedding model needs one cell per
    token computed at once."""
    if wishes.kv_tokens:
        return [whole_cells(wishes.kv_tokens)]
    if shape.embeds:
        batch = least.batch if least.gpu_layers else EMBEDDING_BATCH
        widest = OUTPUT_BYTES // FLOAT // max(1, shape.n_vocab)
        return [whole_cells(max(least.context, min(batch, widest) if shape.whole else batch))]
    most = _most_contexts(shape, machine, wishes, least)
    return [least.kv_tokens * count for count in (most, *(each for each in CONTEXTS if each < most))]


def _most_contexts(shape: Shape, machine: Machine, wishes: Wishes, least: Load) -> int:
    """Return how many whole contexts the KV cache should hold."""
    needs = estimate(shape, least)
    if machine.shared or layers_on_gpu(shape, least.gpu_layers) < len(shape.layers):
        most, fewest = default_contexts(least.context, least.parallel), min(2, least.parallel)
        room = RAM_SHARE * (machine.usable_ram - needs.weights + needs.gpu_weights)
    else:
        most, fewest = least.parallel, 1
        room = GPU_SHARE * (machine.usable_vram - needs.gpu_weights)
    for count in range(most, fewest, -1):
        load = _with_pool(shape, wishes, least, count * least.kv_tokens)
        if cache_bytes(shape, load) <= room:
            return count
    return fewest
