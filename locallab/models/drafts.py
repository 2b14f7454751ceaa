"""Which model drafts for another one."""

from __future__ import annotations

import dataclasses

from locallab.models.registry import Registry
from locallab.models.spec import ModelSpec, Part
from locallab.settings import EngineSettings

NONE = "none"
"""Value of the setting draft_model for a model that does without."""


@dataclasses.dataclass(frozen=True, slots=True)
class DraftOf:
    """The draft model: a part of an entry, of the same that it drafts for or of another one."""

    spec: ModelSpec
    part: Part

    @property
    def size(self) -> int | None:
        """Bytes of its file, None if they are unknown before it is fetched."""
        return self.spec.size if self.part == "model" else None


def draft_of(spec: ModelSpec, settings: EngineSettings, registry: Registry) -> DraftOf | None:
    """Return the draft model of `spec`: that of its `settings`, else that of its entry; None without one, or if it would be the
    model itself. Raises UnknownModel, ConfigError."""
    name = settings.draft_model
    if not settings.drafts or name == NONE:
        return None
    if name is None:
        return DraftOf(spec, "draft") if spec.draft is not None else None
    found = registry.look_up(name)
    return DraftOf(found, "model") if found.source != spec.source else None
