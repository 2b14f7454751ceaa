"""Which file a model sees and hears with, and what kinds of input that makes."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from locallab.errors import ConfigError, ModelLoadError
from locallab.models import gguf
from locallab.models.spec import ModelSpec
from locallab.models.store import Store
from locallab.settings import EngineSettings

NONE = "none"
"""Value of the setting mmproj for a model that does without."""

_ENCODERS = {"clip.has_vision_encoder": "image", "clip.has_audio_encoder": "audio"}


def projector_of(spec: ModelSpec, settings: EngineSettings, store: Store) -> Path | None:
    """Return the projector's file: that of the settings, else that of the model's entry, if it has one and it is on disk.

    Raises ConfigError for a file that is named and does not exist.
    """
    if settings.mmproj == NONE:
        return None
    if settings.mmproj is None:
        return store.path(spec, "mmproj")
    path = Path(os.path.expanduser(settings.mmproj)).absolute()
    if not path.is_file():
        raise ConfigError(f"mmproj: there is no file {path}; name the .gguf file of a projector, or none")
    return path


def modalities(spec: ModelSpec, store: Store) -> frozenset[str]:
    """Return what the prompts of a model that is not loaded may have in them: "text", perhaps "image" and "audio".

    Reads the header of its projector; without one on disk it is what the entry says.
    """
    path = store.path(spec, "mmproj")
    return frozenset(spec.takes) if path is None else _modalities(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _modalities(path: Path, modified: int) -> frozenset[str]:
    """As `modalities`, of a projector's file; `modified` makes a changed file another cache entry."""
    try:
        facts = gguf.read(path).metadata
    except ModelLoadError:
        return frozenset({"text"})
    return frozenset({"text", *(kind for key, kind in _ENCODERS.items() if facts.get(key))})
