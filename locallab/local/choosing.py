"""Which model a server starts with, and whether this machine could do better."""

from __future__ import annotations

import logging

from locallab import hardware
from locallab.engine.llama import supports_gpu
from locallab.fit import Machine, unnamed
from locallab.fit.fit_model import Layers
from locallab.models import ModelSpec, Registry, Store

log = logging.getLogger(__name__)


def choose(registry: Registry, name: str | None, layers: Layers) -> ModelSpec:
    """The model of this name; without one, the best recommended one for this machine: the log says which, and why.

    `layers` are the engine settings that are fixed. Raises ConfigError, UnknownModel.
    """
    if name:
        return registry.resolve(name)
    choice = unnamed(registry, Store(), Machine.here(supports_gpu()), layers)
    log.info("no model is named: %s it is, %s", choice.spec.id, choice.reason)
    return choice.spec


def warn_of_idle_gpu() -> None:
    """Logs how to install what would use this machine's GPU, if nothing does."""
    if hint := hardware.cuda_hint(supports_gpu()):
        log.warning("%s", hint)
