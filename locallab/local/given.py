"""Settings given as keyword arguments: they go before the environment, as flags do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from locallab import settings
from locallab.errors import ConfigError
from locallab.settings import EngineSettings

Layers = list[tuple[str, Mapping[str, Any]]]


def layers(cls: type, where: str, values: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> Layers:
    """For `settings.resolve`: `first`, the environment, then those of `values` that are settings of `cls`."""
    known = {name for name, _, _ in settings.fields(cls)}
    mine = {name: value for name, value in values.items() if name in known}
    environment = [(f"LOCALLAB_{name.upper()}", {name: value}) for name, value in settings.environment(cls).items()]
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
