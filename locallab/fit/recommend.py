"""Which model to serve when nobody names one. Pure, but for asking whether the Hub can be reached, if it comes to that."""

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
"""Bytes of weights that a CPU thread reads well within the time in which a person reads some words: a tenth of a second."""


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """A model of the registry: whether its files are on disk, and how it would be loaded here."""

    spec: ModelSpec
    on_disk: bool
    fit: Fit


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The model to serve, and why, in a line."""

    spec: ModelSpec
    reason: str


def offered(
    specs: Iterable[ModelSpec], find: Callable[[ModelSpec], Path | None], machine: Machine, layers: Layers = ()
) -> list[Offer]:
    """The recommended models of the registry as `pick` wants them; `find` says where a model's file is, None if not on disk.

    What cannot be judged, because its file is damaged or nobody says its size, is not among them.
    """
    found = []
    for spec in specs:
        if spec.recommended:
            with contextlib.suppress(ModelError):
                path = find(spec)
                found.append(Offer(spec, path is not None, fit_model(spec, path, machine, layers)))
    return found


def unnamed(registry: Registry, store: Store, machine: Machine, layers: Layers = ()) -> Choice:
    """The model to serve when nobody names one, of this registry on this machine."""
    return pick(offered(registry, store.path, machine, layers), registry.default, machine, hub_status.hub_reachable)


def pick(offers: Iterable[Offer], default: ModelSpec, machine: Machine, hub_reachable: Callable[[], bool]) -> Choice:
    """The largest recommended model that fits and is quick enough: 1. of those on disk, 2. of those on the Hub, if it can be
    reached, 3. else `default`. Only 2. asks `hub_reachable`."""
    suited = [offer for offer in offers if offer.spec.recommended and _suits(offer, machine)]
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


def _suits(offer: Offer, machine: Machine) -> bool:
    """Whether it fits, and somebody would wait for its answers."""
    on_cpu = offer.fit.load.gpu_layers == 0
    return offer.fit.fits and (not on_cpu or offer.fit.estimate.weights <= PER_THREAD * machine.threads)
