"""The start of a server or an engine: settings given as keyword arguments, the model, and the pool."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from locallab import hardware, settings
from locallab.engine.llama import supports_gpu
from locallab.errors import ConfigError
from locallab.fit import Machine, unnamed
from locallab.models import ModelSpec, Registry, Store
from locallab.settings import EngineSettings

log = logging.getLogger(__name__)

Layers = Sequence[tuple[str, Mapping[str, Any]]]


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


def layers(cls: type, where: str, values: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> Layers:
    """For `settings.resolve`: `first`, the environment, then those of `values` that are settings of `cls`."""
    known = {name for name, _, _ in settings.fields(cls)}
    mine = {name: value for name, value in values.items() if name in known}
    environment = [(settings.variable(name), {name: value}) for name, value in settings.environment(cls).items()]
    return [(where, first or {}), *environment, (where, mine)]


def check(where: str, values: Mapping[str, Any], *classes: type) -> None:
    """Raises ConfigError for what is no setting of `classes`, with the nearest that are."""
    known = [name for cls in classes for name, _, _ in settings.fields(cls)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown setting {name!r}; {hint}")


def engine_layers(where: str, values: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> Layers:
    """As `layers`, for EngineSettings, checked: a wrong value is told before anything is loaded."""
    found = layers(EngineSettings, where, values, first)
    settings.resolve(EngineSettings, *found)
    return found
