"""Chooses how to load a model so that it fits this machine: layers on the GPU, context, KV type, requests at once. Pure.

The first of these that fits is chosen; what the user has fixed stays as it is:

1. all layers on the GPU, with as much context as wanted; with less if need be, but not less than FLOOR;
2. as many layers on the GPU as go there with the context that is wanted, or of CONTEXT, if that is a good part of them;
3. all on the CPU, with as much context as wanted, but not less than FLOOR;
4. all on the GPU, then all on the CPU, with as little context as LEAST.

For one context the KV pool shrinks first, then fewer requests run at once, then the KV cache is compressed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from locallab.fit.estimates import STEP, Estimate, Load, estimate
from locallab.fit.explain import reason
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape, shape
from locallab.models.gguf import Header
from locallab.settings import EngineSettings, KvType

CONTEXT = 8192
"""Context wanted for a model of which nobody says one; more is not worth leaving the GPU."""

FLOOR, LEAST = 4096, 512
PARALLEL = (64, 16), (4, 1)
POOL = 16384
"""Tokens of the KV pool that are wanted, or two contexts if that is more."""

WIDEST = 1 << 27
"""Numbers of an output, as many as the vocabulary has, times texts' tokens computed at once, where each has one."""

SHARE = 4
"""A GPU that takes less than one in so many layers is not worth it."""

MIB = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is fixed, by the names of the settings; None is free. `usual_context` is wanted, but may be lowered."""

    context: int | None = None
    kv_tokens: int | None = None
    kv_type: KvType | None = None
    gpu_layers: int | None = None
    parallel: int | None = None
    batch: int | None = None
    cache_ram_mib: int | None = None
    usual_context: int | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], usual_context: int | None = None) -> Wishes:
        """Those among engine settings that somebody gave."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in names}, usual_context=usual_context)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What was chosen. `fits` False: not even that fits, and `load` is the least there is. `reason` says what and why in a
    line; `approximate`: the model's file is not here, so that its size had to do."""

    fits: bool
    load: Load
    estimate: Estimate
    cache_ram_mib: int
    reason: str
    approximate: bool = False

    @property
    def layer(self) -> dict[str, Any]:
        """The values to use, as a layer for `settings.resolve` that comes before what the user fixed."""
        names = ("gpu_layers", "context", "kv_tokens", "kv_type", "parallel")
        return {**{name: getattr(self.load, name) for name in names}, "cache_ram_mib": self.cache_ram_mib}


def choose(shape: Shape, machine: Machine, wishes: Wishes = Wishes(), *, approximate: bool = False) -> Fit:
    """How to load a model of this shape on this machine."""
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
        cache = _cache(machine, needs)
    text = reason(shape, machine, fits, (load, needs), first)
    return Fit(fits=fits, load=load, estimate=needs, cache_ram_mib=cache, reason=text, approximate=approximate)


def layer(header: Header, machine: Machine, given: Mapping[str, Any], usual_context: int | None = None) -> dict[str, Any]:
    """A layer for `settings.resolve` with what suits this machine, to come before the layers that made `given`.

    `given` are the engine settings that the user fixed; `usual_context` is the registry's, which may be lowered.
    """
    return choose(shape(header), machine, Wishes.of(given, usual_context)).layer


def _cache(machine: Machine, needs: Estimate) -> int:
    """MiB of RAM for prefixes moved out of the KV pool: as usual, if so much is left."""
    left = machine.usable_ram - needs.ram - (needs.gpu if machine.shared else 0)
    return max(0, min(EngineSettings().cache_ram_mib, left // MIB))


def _loads(shape: Shape, machine: Machine, wishes: Wishes) -> Iterator[Load]:
    """What may be tried, best first."""
    contexts = _contexts(shape, wishes)
    ample = [each for each in contexts if each >= min(FLOOR, contexts[0])]
    scant = contexts[len(ample) :]
    if not machine.has_gpu:
        places = [0]
    elif wishes.gpu_layers is not None:
        places = [wishes.gpu_layers]
    else:
        places = [-1, 0]
        yield from _variants(shape, wishes, -1, ample)
        yield from _split(shape, wishes, next((each for each in ample if each <= CONTEXT), ample[-1]))
        yield from _variants(shape, wishes, 0, ample)
        ample = []
    for listed in (ample, scant):
        for place in places:
            yield from _variants(shape, wishes, place, listed)


def _split(shape: Shape, wishes: Wishes, context: int) -> Iterator[Load]:
    """Fewer and fewer layers on the GPU."""
    total = len(shape.layers) + 1
    for gpu_layers in range(total - 1, total // SHARE, -1):
        yield from _variants(shape, wishes, gpu_layers, [context])


def _variants(shape: Shape, wishes: Wishes, gpu_layers: int, contexts: Iterable[int]) -> Iterator[Load]:
    kv_types: tuple[KvType, ...] = (wishes.kv_type,) if wishes.kv_type else ("f16", "q8_0") if shape.compressible else ("f16",)
    rounds = ((wishes.parallel,),) if wishes.parallel else PARALLEL
    for several in rounds:
        for context in contexts:
            for kv_type in kv_types:
                for parallel in several:
                    for pool in _pools(shape, wishes, context, parallel, gpu_layers):
                        yield Load(
                            gpu_layers=gpu_layers,
                            context=min(context, pool),
                            kv_tokens=pool,
                            kv_type=kv_type,
                            parallel=parallel,
                            batch=wishes.batch or EngineSettings().batch,
                        )


def _contexts(shape: Shape, wishes: Wishes) -> list[int]:
    """The one that is fixed, else the one wanted and its halves."""
    if wishes.context:
        return [wishes.context]
    trained = shape.n_ctx_train if shape.n_ctx_train > 0 else CONTEXT
    found = [wishes.usual_context or min(trained, CONTEXT)]
    while found[-1] > LEAST:
        found.append(max(LEAST, found[-1] // 2))
    return found


def _pools(shape: Shape, wishes: Wishes, context: int, parallel: int, gpu_layers: int) -> list[int]:
    """Cells of the KV pool, the most first; llama.cpp makes them multiples of 256. A model that makes no text needs as many as
    it computes at once."""
    if wishes.kv_tokens:
        return [_round(wishes.kv_tokens)]
    if shape.embeds:
        batch = (wishes.batch or EngineSettings().batch) if gpu_layers else STEP
        return [_round(max(context, min(batch, WIDEST // max(1, shape.n_vocab)) if shape.whole else batch))]
    return list(dict.fromkeys((_round(min(max(2 * context, POOL), parallel * context)), _round(context))))


def _round(tokens: int) -> int:
    return -(-tokens // 256) * 256
