"""The choice of how to load a model on this machine: what is on the GPU, context, KV type, concurrent requests. Pure.

The first of these that fits is chosen; configured values are never changed:

1. all layers on the GPU;
2. all layers on the GPU, but for the experts of as many layers as necessary, which are in RAM;
3. as many layers on the GPU as fit, if that is a good part of them, and all experts in RAM;
4. all layers on the CPU;
5. the same again, but for 3, with ever smaller contexts, down to LEAST.

In 1, 2 and 4 the context is the wanted one, reduced to DEFAULT_CONTEXT if necessary; in 3 it is at most that. Experts go to
RAM for a context of up to EXPERTS_CONTEXT. Where nobody names a context, the trained one is wanted; beyond DEFAULT_CONTEXT
nothing is compressed for it, and in RAM its KV cache gets at most RAM_SHARE of what the weights leave.

For one context the KV cache shrinks first, then fewer requests run concurrently, then the KV cache is compressed. It holds
whole contexts, so that each may be a stream of its own: on a GPU with all layers as many as GPU_SHARE of the memory left after
the weights has room for, elsewhere as RAM_SHARE of the RAM left after them has, at least two and at most `default_contexts`.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from locallab.fit.estimates import FLOAT, Estimate, Load, cache_bytes, estimate, layers_on_gpu, step_bytes
from locallab.fit.explain import reason
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape
from locallab.fit.speed import Speed, expected
from locallab.fit.spread import overfull
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
from locallab.settings import EngineSettings, KvLayout, KvType, Layout

LEAST = 512
EXPERTS_CONTEXT = 32768
"""Context for which experts go to RAM: they are slower there, but not as much as whole layers."""

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
    kv_type_k: KvType | None = None
    kv_type_v: KvType | None = None
    kv_layout: KvLayout | None = None
    gpu_layers: int | None = None
    cpu_moe: bool = False
    n_cpu_moe: int | None = None
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
    speed: Speed
    cache_ram_mib: int
    reason: str
    approximate: bool = False
    full: bool = False

    @property
    def layer(self) -> dict[str, Any]:
        """The chosen settings as a layer for `settings.resolve`, below the configured ones."""
        names = ("gpu_layers", "context", "kv_tokens", "kv_type", "kv_layout", "parallel", "ubatch")
        chosen = {name: getattr(self.load, name) for name in names}
        return {**chosen, "n_cpu_moe": self.load.n_cpu_moe or None, "cache_ram_mib": self.cache_ram_mib}


class _Place(NamedTuple):
    """Layers on the GPU, as llama.cpp counts them, and layers whose experts are in RAM."""

    gpu_layers: int
    n_cpu_moe: int = 0


def choose(shape: Shape, machine: Machine, wishes: Wishes = Wishes(), *, approximate: bool = False) -> Fit:
    """Choose how to load a model of this shape on this machine."""
    wanted = EngineSettings().cache_ram_mib if wishes.cache_ram_mib is None else wishes.cache_ram_mib
    cache = wishes.cache_ram_mib or 0
    first: tuple[Load, Estimate] | None = None
    for load in _loads(shape, machine, wishes):
        needs = estimate(shape, load, max(1, len(machine.gpus)))
        first = first or (load, needs)
        fits = machine.holds(needs.ram + cache * MIB, needs.gpu) and not overfull(shape, load, machine)
        fits = fits and _leaves_ram(shape, machine, wishes, load, needs)
        if fits:
            break
    assert first is not None, "there is always one to try"
    if wishes.cache_ram_mib is None:
        left = machine.usable_ram - needs.ram - (needs.gpu if machine.shared else 0)
        cache = max(0, min(wanted, left // MIB))
    speed = expected(shape, load, machine)
    return Fit(
        fits=fits,
        load=load,
        estimate=needs,
        speed=speed,
        cache_ram_mib=cache,
        reason=reason(shape, machine, fits, (load, needs), first, speed),
        approximate=approximate,
        full=fits and load == first[0] and cache == wanted,
    )


def _leaves_ram(shape: Shape, machine: Machine, wishes: Wishes, load: Load, needs: Estimate) -> bool:
    """Return whether a context that nobody named leaves enough RAM to others."""
    if wishes.context or wishes.usual_context or load.context <= DEFAULT_CONTEXT:
        return True
    if not machine.shared and layers_on_gpu(shape, load.gpu_layers) == len(shape.layers):
        return True
    return cache_bytes(shape, load) <= RAM_SHARE * (machine.usable_ram - needs.weights + needs.gpu_weights)


def _loads(shape: Shape, machine: Machine, wishes: Wishes) -> Iterator[Load]:
    """Yield the loads to try, best first."""
    ample, scant = _contexts(shape, wishes)
    places = _places(shape, machine, wishes, ample)
    others = _places(shape, machine, wishes, scant, parts=False) if scant else ()
    for number, (place, contexts) in enumerate(itertools.chain(places, others)):
        loads = _variants(shape, machine, wishes, place, contexts)
        if number == 0:
            yield next(loads)
        smallest = _smallest(shape, wishes, place, contexts[-1])
        needs = estimate(shape, smallest, max(1, len(machine.gpus)))
        if shape.embeds or machine.holds(needs.ram, needs.gpu):
            yield from loads
        else:
            yield smallest


def _smallest(shape: Shape, wishes: Wishes, place: _Place, context: int) -> Load:
    """Return the load that takes the least there: if it does not fit, no other does."""
    load = _least(shape, wishes, place, context, _kv_types(shape, wishes, context)[-1], wishes.parallel or 1)
    layout: Layout = "unified" if shape.embeds or wishes.kv_layout == "unified" else "streams"
    cells = whole_cells(wishes.kv_tokens or context)
    return dataclasses.replace(load, kv_layout=layout, kv_tokens=cells, context=min(context, cells))


def _contexts(shape: Shape, wishes: Wishes) -> tuple[list[int], list[int]]:
    """Return the contexts to try, longest first, and those to fall back on."""
    trained = shape.n_ctx_train if shape.n_ctx_train > 0 else DEFAULT_CONTEXT
    longest = wishes.context or wishes.usual_context or (min(trained, DEFAULT_CONTEXT) if shape.embeds else trained)
    if wishes.context:
        return [longest], []
    usual = min(longest, DEFAULT_CONTEXT)
    ample = [longest]
    while ample[-1] > usual:
        ample.append(max(usual, ample[-1] // 2))
    scant = []
    while usual > LEAST:
        scant.append(usual := max(LEAST, usual // 2))
    return ample, scant


def _places(
    shape: Shape, machine: Machine, wishes: Wishes, contexts: list[int], *, parts: bool = True
) -> Iterator[tuple[_Place, list[int]]]:
    """Yield the places to try, best first, each with the contexts to try there; `parts`: also with some layers on the GPU."""
    total = len(shape.layers) + 1
    fixed = len(shape.layers) if wishes.cpu_moe else wishes.n_cpu_moe
    if not machine.has_gpu:
        yield _Place(0, fixed or 0), contexts
        return
    if wishes.gpu_layers is not None:
        yield _Place(wishes.gpu_layers, fixed or 0), contexts
        if not 0 <= wishes.gpu_layers < total:
            yield from _without_experts(shape, machine, wishes, contexts)
        return
    yield _Place(-1, fixed or 0), contexts
    yield from _without_experts(shape, machine, wishes, contexts)
    none = len(shape.layers) if fixed is None and shape.has_experts and not machine.shared else fixed or 0
    for gpu_layers in range(total - 1, total // SHARE, -1) if parts else ():
        yield _Place(gpu_layers, none), contexts[-1:]
    yield _Place(0, fixed or 0), contexts


def _without_experts(shape: Shape, machine: Machine, wishes: Wishes, contexts: list[int]) -> Iterator[tuple[_Place, list[int]]]:
    """Yield places with all layers on the GPU, but for the experts of as few as possible."""
    if machine.shared or not shape.has_experts or wishes.cpu_moe or wishes.n_cpu_moe is not None:
        return
    # Each request takes a state where the model keeps any, and many would take all.
    several = (wishes.parallel,) if wishes.parallel else (PARALLEL[shape.keeps_state][0], 1)
    aims = contexts if wishes.context or wishes.usual_context else [c for c in contexts if c <= EXPERTS_CONTEXT]
    for context in aims:
        for parallel, kv_type in itertools.product(several, _kv_types(shape, wishes, context)):
            fewest = _fewest_experts(shape, machine, wishes, context, kv_type, parallel)
            if fewest is not None:
                yield (
                    _Place(-1 if wishes.gpu_layers is None else wishes.gpu_layers, fewest),
                    [c for c in contexts if c <= context],
                )


def _fewest_experts(shape: Shape, machine: Machine, wishes: Wishes, context: int, kv_type: KvType, parallel: int) -> int | None:
    """Return of how few layers the experts must be in RAM so that the rest fits on the GPU, None if it never does."""

    def fits(count: int) -> bool:
        load = _least(shape, wishes, _Place(-1, count), context, kv_type, parallel)
        needs = estimate(shape, load, len(machine.gpus))
        return needs.gpu <= machine.usable_vram and not overfull(shape, load, machine)

    counts = range(1, len(shape.layers) + 1)
    found = bisect.bisect_left(counts, True, key=fits)
    return counts[found] if found < len(counts) else None


def _kv_types(shape: Shape, wishes: Wishes, context: int) -> tuple[KvType, ...]:
    """Return the types to try for what is left open of the KV cache, best first."""
    if wishes.kv_type:
        return (wishes.kv_type,)
    free = shape.compressible and not (wishes.kv_type_k and wishes.kv_type_v)
    named = wishes.context or wishes.usual_context
    return ("f16", "q8_0") if free and (named or context <= DEFAULT_CONTEXT) else ("f16",)


def _variants(shape: Shape, machine: Machine, wishes: Wishes, place: _Place, contexts: Iterable[int]) -> Iterator[Load]:
    rounds = ((wishes.parallel,),) if wishes.parallel else PARALLEL
    for several in rounds:
        for context in contexts:
            for kv_type, parallel in itertools.product(_kv_types(shape, wishes, context), several):
                least = _least(shape, wishes, place, context, kv_type, parallel)
                for pool in _pools(shape, machine, wishes, least):
                    yield _with_ubatch(shape, machine, wishes, _with_pool(shape, wishes, least, pool))


def _least(shape: Shape, wishes: Wishes, place: _Place, context: int, kv_type: KvType, parallel: int) -> Load:
    """Return the load that holds one context."""
    batch = wishes.batch or EngineSettings().batch
    return Load(
        gpu_layers=place.gpu_layers,
        n_cpu_moe=place.n_cpu_moe,
        context=context,
        kv_tokens=whole_cells(context),
        kv_type=kv_type,
        kv_type_k=wishes.kv_type_k,
        kv_type_v=wishes.kv_type_v,
        parallel=parallel,
        kv_layout="unified",
        batch=batch,
        ubatch=min(STEP if shape.embeds else wishes.ubatch or STEP, batch),
    )


def _with_ubatch(shape: Shape, machine: Machine, wishes: Wishes, load: Load) -> Load:
    """Return the load with as many tokens in one go as its share of the GPU memory left after the weights has buffers for. Not
    with a sliding window, whose cache keeps room for them in each stream."""
    if shape.embeds or shape.window or wishes.ubatch:
        return load
    gpus = len(machine.gpus) if load.gpu_layers else 0
    partial = load.n_cpu_moe > 0 or layers_on_gpu(shape, load.gpu_layers) < len(shape.layers)
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
    if not machine.holds(needs.ram, needs.gpu) and not shape.keeps_state:
        return 1  # more will not fit either; in streams there are fewer states
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
