"""From an entry of the registry to how it is loaded here, and to the engine's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallab.errors import SourceError
from locallab.fit.choice import Fit, Wishes, choose
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape, approximate, shape
from locallab.models.gguf import read
from locallab.models.spec import ModelSpec
from locallab.settings import EngineSettings, configured, resolve

Layers = Sequence[tuple[str, Mapping[str, Any]]]


def fit_model(spec: ModelSpec, path: Path | None, machine: Machine, layers: Layers = ()) -> Fit:
    """How the model of `spec` is loaded on this machine; `path` is its file, None while it is not on disk: then its size has to
    do. `layers` are what the environment and the flags fix.

    Raises ModelLoadError for a file that cannot be read, SourceError when nothing is known of the size, ConfigError.
    """
    fixed = configured(EngineSettings, _entry(spec), *layers)
    wishes = Wishes.of(fixed, spec.context)
    return choose(model_shape(spec, path), machine, wishes, approximate=path is None)


def model_shape(spec: ModelSpec, path: Path | None) -> Shape:
    """The model's shape from its file's header, or a usual one of its size."""
    if path is not None:
        return shape(read(path))
    if spec.size is None:
        raise SourceError(f"{spec.id}: it is not on disk and the registry does not say its size; fetch it first: locallab pull")
    return approximate(spec.size)


def fitted(spec: ModelSpec, fit: Fit, layers: Layers = ()) -> EngineSettings:
    """The engine's settings: what was chosen, then what the entry and `layers` fix."""
    return resolve(EngineSettings, ("fit", fit.layer), _entry(spec), *layers)


def _entry(spec: ModelSpec) -> tuple[str, Mapping[str, Any]]:
    """What the entry fixes: not its context, which may be lowered."""
    return f"models.yaml: {spec.id}", spec.settings
