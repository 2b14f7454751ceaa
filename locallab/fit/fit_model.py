"""Fitting a registry entry to this machine, and the engine settings that result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallab.errors import ModelLoadError, SourceError
from locallab.fit.choice import Fit, Wishes, choose
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape, approximate, shape
from locallab.models import gguf
from locallab.models.drafts import DraftOf
from locallab.models.spec import ModelSpec
from locallab.placement_settings import overrides
from locallab.settings import EngineSettings, configured, resolve

Layers = Sequence[tuple[str, Mapping[str, Any]]]


def fit_model(
    spec: ModelSpec,
    file: Path | gguf.Header | None,
    machine: Machine,
    layers: Layers = (),
    draft: Shape | None = None,
) -> Fit:
    """Choose how to load the model of `spec` on this machine, by its file or the file's header; by its size alone while the
    file is not on disk (None). `layers` are the settings configured by the environment and the flags, `draft` is the shape of
    the draft model, if there is one.

    Raises ModelLoadError for an unreadable file, SourceError if the size is unknown, ConfigError.
    """
    options = configured(EngineSettings, _entry(spec), *layers)
    found = model_shape(spec, file, draft, overrides(options.get("override_tensor")))
    return choose(found, machine.with_gpus(options), Wishes.of(options, spec.context), approximate=file is None)


def model_shape(
    spec: ModelSpec,
    file: Path | gguf.Header | None,
    draft: Shape | None = None,
    moved: Sequence[tuple[str, str]] = (),
) -> Shape:
    """Return the model's shape by its file or the file's header, with tensors where the `moved` pairs of a pattern and a device
    put them, or the usual shape for its size, with that of its draft model. Raises as `fit_model`."""
    if isinstance(file, Path):
        file = gguf.read(file)
    if file is not None:
        found = shape(file, moved)
        return found if found.embeds else dataclasses.replace(found, draft=draft)
    if spec.size is None:
        raise SourceError(f"{spec.id}: it is not on disk and the registry does not say its size; fetch it first: locallab pull")
    return dataclasses.replace(approximate(spec.size), draft=draft)


def file_shape(path: Path) -> Shape:
    """Return the shape of a model by its file, the usual one for its size if its header cannot be read: the engine explains
    better what is wrong."""
    try:
        return shape(gguf.read(path))
    except ModelLoadError:
        return approximate(path.stat().st_size if path.exists() else 0)


def draft_shape(draft: DraftOf, path: Path | None) -> Shape:
    """Return the shape of a draft model by its file, or the usual one for its size. Raises SourceError without either."""
    if path is not None:
        return file_shape(path)
    if draft.size is None:
        raise SourceError(f"{draft.spec.id}: its draft model is not on disk; fetch it first: locallab pull {draft.spec.id}")
    return approximate(draft.size)


def fitted(spec: ModelSpec, fit: Fit, layers: Layers = ()) -> EngineSettings:
    """Return the engine's settings: the fit, overridden by the entry and `layers`. Raises ConfigError."""
    return resolve(EngineSettings, ("fit", fit.layer), _entry(spec), *layers)


def _entry(spec: ModelSpec) -> tuple[str, Mapping[str, Any]]:
    """Return the entry's fixed settings as a layer: not its context, which may be lowered."""
    return f"models.yaml: {spec.id}", spec.settings
