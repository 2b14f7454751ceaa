"""Fitting a registry entry to this machine, and the engine settings that result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallab.errors import SourceError
from locallab.fit.choice import Fit, Wishes, choose
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape, approximate, shape
from locallab.models import gguf
from locallab.models.spec import ModelSpec
from locallab.settings import EngineSettings, configured, resolve

Layers = Sequence[tuple[str, Mapping[str, Any]]]


def fit_model(spec: ModelSpec, file: Path | gguf.Header | None, machine: Machine, layers: Layers = ()) -> Fit:
    """Choose how to load the model of `spec` on this machine, by its file or the file's header; by its size alone while the
    file is not on disk (None). `layers` are the settings configured by the environment and the flags.

    Raises ModelLoadError for an unreadable file, SourceError if the size is unknown, ConfigError.
    """
    wishes = Wishes.of(configured(EngineSettings, _entry(spec), *layers), spec.context)
    return choose(model_shape(spec, file), machine, wishes, approximate=file is None)


def model_shape(spec: ModelSpec, file: Path | gguf.Header | None) -> Shape:
    """Return the model's shape by its file or the file's header, or the usual shape for its size. Raises as `fit_model`."""
    if isinstance(file, Path):
        file = gguf.read(file)
    if file is not None:
        return shape(file)
    if spec.size is None:
        raise SourceError(f"{spec.id}: it is not on disk and the registry does not say its size; fetch it first: locallab pull")
    return approximate(spec.size)


def fitted(spec: ModelSpec, fit: Fit, layers: Layers = ()) -> EngineSettings:
    """Return the engine's settings: the fit, overridden by the entry and `layers`. Raises ConfigError."""
    return resolve(EngineSettings, ("fit", fit.layer), _entry(spec), *layers)


def _entry(spec: ModelSpec) -> tuple[str, Mapping[str, Any]]:
    """Return the entry's fixed settings as a layer: not its context, which may be lowered."""
    return f"models.yaml: {spec.id}", spec.settings
