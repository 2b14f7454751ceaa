"""The choice of a model to serve when none is named. Pure, except for testing whether the Hub is reachable."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from locallab.errors import ModelError
from locallab.fit.choice import Fit
from locallab.fit.fit_model import Layers, fit_model
from locallab.fit.machine import Machine
from locallab.models import hub_status
from locallab.models.registry import Registry
from locallab.models.spec import HubSource, MemoryClass, ModelSpec
from locallab.models.store import Store

RAM_CLASSES: dict[MemoryClass, int] = {"ram-16": 16 * 10**9, "ram-64": 64 * 10**9}
GPU_CLASSES: dict[MemoryClass, int] = {"gpu-8": 8 * 10**9, "gpu-16": 16 * 10**9, "gpu-24": 24 * 10**9, "gpu-80": 80 * 10**9}

CLASS_SHARE = 0.85
"""Share of the memory of its class that a machine has free: some is in use, or never reported. Whether a model fits is another
question, which `Fit` answers."""

PER_THREAD = 600 * 10**6
"""Most bytes of weights that a token may read per CPU thread: it does so in a tenth of a second, faster than a person reads a
word."""


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """A model of the registry, whether it is on disk, and its fit to this machine."""

    spec: ModelSpec
    on_disk: bool
    fit: Fit


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The model to serve, and the reason in a line."""

    spec: ModelSpec
    reason: str


def offered(
    specs: Iterable[ModelSpec], find: Callable[[ModelSpec], Path | None], machine: Machine, layers: Layers = ()
) -> list[Offer]:
    """Return the recommended models as offers for `pick`; `find` returns the path of a model's file, None if not on disk.

    Models whose file is damaged or whose size is unknown are left out.
    """
    found = []
    for spec in specs:
        if spec.recommended:
            with contextlib.suppress(ModelError):
                path = find(spec)
                found.append(Offer(spec, path is not None, fit_model(spec, path, machine, layers)))
    return found


def unnamed(registry: Registry, store: Store, machine: Machine, layers: Layers = ()) -> Choice:
    """Choose the model of this registry to serve on this machine when none is named."""
    return pick(offered(registry, store.path, machine, layers), registry.default, machine, hub_status.hub_reachable)


def pick(offers: Iterable[Offer], default: ModelSpec, machine: Machine, hub_reachable: Callable[[], bool]) -> Choice:
    """Pick the best recommended model that fits and is fast enough: 1. of those on disk, 2. of those on the Hub, if it is
    reachable, 3. else `default`. The best is recommended for the highest memory class of the machine; of several the largest.
    One that is recommended for other classes only is not worth fetching, but comes before nothing.
    Only 2. calls `hub_reachable`."""
    classes = memory_classes(machine)
    suited = [
        offer
        for offer in offers
        if offer.spec.recommended and offer.fit.fits and (offer.fit.load.gpu_layers != 0 or _is_fast(offer, machine))
    ]

    def rank(offer: Offer) -> tuple[int, int]:
        return _place(offer.spec, classes), offer.fit.estimate.weights

    here = [offer for offer in suited if offer.on_disk]
    if here:
        best = max(here, key=rank)
        return Choice(best.spec, f"the best recommended model on disk that fits: {best.fit.reason}")
    afar = [offer for offer in suited if isinstance(offer.spec.source, HubSource) and rank(offer)[0] >= 0]
    if not afar:
        return Choice(default, "no recommended model fits this machine; this small one runs everywhere")
    best = max(afar, key=rank)
    if hub_reachable():
        return Choice(best.spec, f"the best recommended model that fits, to be fetched now: {best.fit.reason}")
    return Choice(default, f"{best.spec.id} would fit, but is not on disk, and the Hub cannot be reached")


def memory_classes(machine: Machine) -> list[MemoryClass]:
    """Return the memory classes that this machine reaches, in ascending order: of RAM and, with a GPU, of GPU memory above
    them. Each machine reaches the smallest of its kind."""
    reached = _reached(RAM_CLASSES, machine.ram)
    if machine.has_gpu:
        free = machine.ram if machine.shared else sum(gpu.free or 0 for gpu in machine.gpus)
        reached += _reached(GPU_CLASSES, free)
    return reached


def _reached(classes: dict[MemoryClass, int], free: int) -> list[MemoryClass]:
    smallest, *others = classes
    return [smallest, *(name for name in others if free >= CLASS_SHARE * classes[name])]


def _place(spec: ModelSpec, classes: list[MemoryClass]) -> int:
    """Return the place in `classes` of the highest one that the model is recommended for, -1 if there is none."""
    if isinstance(spec.recommended, bool):
        return len(classes) - 1 if spec.recommended else -1
    return max((classes.index(name) for name in spec.recommended if name in classes), default=-1)


def _is_fast(offer: Offer, machine: Machine) -> bool:
    """Return whether the CPU reads the weights that a token needs fast enough."""
    return (offer.spec.active or offer.fit.estimate.weights) <= PER_THREAD * machine.threads
