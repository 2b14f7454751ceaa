"""How a model samples where a request leaves it open: by what its file says, and by the settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from locallab import settings
from locallab.engine.request import SamplingParams
from locallab.engine.sampler_chain import NAMES
from locallab.errors import ConfigError
from locallab.settings import EngineSettings, LoadSettings

KEYS: Mapping[str, str] = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "penalty_repeat",
    "penalty_window": "penalty_last_n",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
"""Settings, and the keys below general.sampling of a GGUF file."""

logger = logging.getLogger(__name__)


class Metadata(Protocol):
    def meta(self, key: str) -> str | None: ...


def sampling_of(model: Metadata, configured: EngineSettings) -> dict[str, Any]:
    """Return fields of SamplingParams: those in the model's file (general.sampling.*) under those of the settings.

    What the file says wrongly is left out, with a warning.
    """
    found = _order(model)
    for field, key in KEYS.items():
        text = model.meta(f"general.sampling.{key}")
        if text is None:
            continue
        try:
            value = float(text)
            whole = isinstance(getattr(SamplingParams(), field), int)
            found |= settings.configured(EngineSettings, ("the model's file", {field: int(value) if whole else value}))
        except (ValueError, OverflowError, ConfigError):
            logger.warning("general.sampling.%s of the model's file is %r: left out", key, text)
    loading = {name for name, _, _ in settings.fields(LoadSettings)}
    fixed = {name: getattr(configured, name) for name, _, _ in settings.fields(EngineSettings) if name not in loading}
    return found | {name: value for name, value in fixed.items() if value is not None}


def _order(model: Metadata) -> dict[str, Any]:
    """Return the samplers' order, `samplers`, if the file has one; names that are unknown here are left out."""
    names = (model.meta("general.sampling.sequence") or "").replace(" ", "").lower().split(";")
    order = tuple(name for name in names if name in NAMES)
    return {"samplers": order} if order else {}
