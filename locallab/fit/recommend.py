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
from locallab.models.spec import HubSource, ModelSpec
from locallab.models.store import Store

PER_THREAD = 600 * 10**6
"""Most bytes of weights per CPU thread: it reads them in a tenth of a second, faster than a person reads a word."""


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
    """Pick the largest recommended model that fits and is fast enough: 1. of those on disk, 2. of those on the Hub, if it is
    reachable, 3. else `default`. Only 2. calls `hub_reachable`."""
    suited = [
        offer
        for offer in offers
        if offer.spec.recommended
        and offer.fit.fits
        and (offer.fit.load.gpu_layers != 0 or offer.fit.estimate.weights <= PER_THREAD * machine.threads)
    ]
    here = [offer for offer in suited if offer.on_disk]
    if here:
        best = max(here, key=_rank)
        return Choice(best.spec, f"the best recommended model on disk that fits: {best.fit.reason}")
    afar = [offer for offer in suited if isinstance(offer.spec.source, HubSource)]
    if not afar:
        return Choice(default, "no recommended model fits this machine; this small one runs everywhere")
    best = max(afar, key=_rank)
    if hub_reachable():
        return Choice(best.spec, f"the best recommended model that fits, to be fetched now: {best.fit.reason}")
    return Choice(default, f"{best.spec.id} would fit, but is not on disk, and the Hub cannot be reached")


def _rank(offer: Offer) -> int:
    return offer.fit.estimate.weights
