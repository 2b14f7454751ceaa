"""The known models: of the shipped models.yaml, the user's own, further files, and models named on the fly."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from locallab.errors import ConfigError, NotServed, UnknownModel
from locallab.models import adhoc, registry_file
from locallab.models.spec import Adapter, FileSource, HubSource, ModelSpec, PypiSource, Source, Variant
from locallab.settings import config_home
from locallab.version import DISTRIBUTION

__all__ = ["FileSource", "HubSource", "ModelSpec", "PypiSource", "Registry", "Source", "default_path", "user_path"]


class Registry:
    """The models of one or more files, in file order. Names are case-insensitive."""

    def __init__(self) -> None:
        self._specs: list[ModelSpec] = []
        self._names: dict[str, tuple[str, ModelSpec]] = {}  # name -> its place in a file, and the model

    @classmethod
    def load(cls, *paths: Path) -> Registry:
        """Read the files in order; an entry replaces one with the same id in an earlier file.

        Raises ConfigError with the file, the line, the entry and the key.
        """
        merged: dict[str, tuple[str, ModelSpec | Variant]] = {}
        for path in paths:
            found: dict[str, tuple[str, ModelSpec | Variant]] = {}
            for where, spec in registry_file.read(path):
                before = found.setdefault(spec.id.lower(), (where, spec))
                if before[1] is not spec:
                    raise _taken(where, spec.id, *before)
            merged |= found
        registry = cls()
        for where, spec in merged.values():
            registry.add(where, _whole(where, spec, merged))
        return registry

    @classmethod
    def discover(cls, extra: str | None = None) -> Registry:
        """Load the usual registry: the shipped file, the user's own if it exists, then `extra`, the setting `registry` with
        comma-separated paths."""
        user = user_path()
        named = [Path(os.path.expanduser(path.strip())) for path in (extra or "").split(",") if path.strip()]
        return cls.load(default_path(), *([user] if user.exists() else []), *named)

    def get(self, model_id: str) -> ModelSpec:
        """Return the model of this id or alias, or of this repository on the Hub. Raises UnknownModel with the nearest ids."""
        if model_id.lower() not in self._names:
            if adhoc.is_hub(model_id):
                return self._of_the_hub(adhoc.canonical(model_id))
            raise UnknownModel.near(model_id, {name: spec.id for name, (_, spec) in self._names.items()})
        return self._names[model_id.lower()][1]

    def resolve(self, name: str) -> ModelSpec:
        """Return the model of this id or alias; add an entry for `hf:owner/repo:Q4_K_M` or the path of a .gguf file, which
        is then found by that spelling too. Raises UnknownModel, ConfigError.

        Only for names from the user of this machine, and for what such a user has fetched: a client of the server must not be
        able to make it download anything.
        """
        if name.lower() in self._names or not adhoc.is_adhoc(name):
            return self.get(name)
        spec = adhoc.spec(name)
        same = self._names.get(spec.id.lower())
        if same is not None and same[1].source == spec.source:
            spec = same[1]
        else:
            free, number = spec.id, 1
            while free.lower() in self._names:
                number += 1
                free = f"{spec.id}-{number}"
            spec = msgspec.structs.replace(spec, id=free)
            self.add("model", spec)
        self._names = {**self._names, name.lower(): ("model", spec)}
        return spec

    def of_the_hub(self, name: str) -> ModelSpec:
        """Return the model of this name, or an entry for a repository on the Hub, which is not added: for a client that may
        fetch models. Raises UnknownModel."""
        try:
            return self.get(name)
        except NotServed:
            return adhoc.spec(name)

    def look_up(self, name: str) -> ModelSpec:
        """Return the model that `resolve` would, without adding an entry: for one that is not to be served. Raises as it."""
        return self.get(name) if name.lower() in self._names or not adhoc.is_adhoc(name) else adhoc.spec(name)

    def _of_the_hub(self, name: str) -> ModelSpec:
        try:
            source = adhoc.spec(name).source
        except ConfigError:
            raise UnknownModel(name) from None
        for each in self:
            if isinstance(each.source, HubSource) and msgspec.structs.replace(each.source, revision=None) == source:
                return each
        raise NotServed(name)

    @property
    def default(self) -> ModelSpec:
        """The first entry."""
        return self._specs[0]

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self._specs)

    @property
    def with_adapters(self) -> Iterator[ModelSpec]:
        """The entries, each followed by what it is with one of its adapters."""
        return (each for spec in self._specs for each in (spec, *spec.adapted))

    def __len__(self) -> int:
        return len(self._specs)

    def add(self, where: str, spec: ModelSpec) -> None:
        """Add an entry read at `where`, its place for error messages, and a name for it with each of its adapters. Raises
        ConfigError if one of the names is taken."""
        names = dict(self._names)  # replaced at once: other threads read them meanwhile
        for each in (spec, *spec.adapted):
            for name in each.names:
                before, taken = names.setdefault(name.lower(), (where, each))
                if taken is not each:
                    raise _taken(where, name, before, taken)
        self._names = names
        self._specs.append(spec)

    def adapt(self, spec: ModelSpec, adapters: Sequence[Adapter]) -> ModelSpec:
        """Give the model of an entry more adapters, and return the new entry. Raises ConfigError for a name that is taken."""
        if not adapters:
            return spec
        old = self.get(spec.loaded_as)
        new = msgspec.structs.replace(old, adapters=(*old.adapters, *adapters))
        place = self._specs.index(old)
        also = [name for name, (_, each) in self._names.items() if each is old and name not in map(str.lower, old.names)]
        self._names = {name: each for name, each in self._names.items() if each[1].loaded_as != old.id}
        self.add("lora", new)
        self._specs[place] = self._specs.pop()
        for name in also:
            self._names[name] = ("model", new)
            self._names |= {f"{name}:{each.adapter.name}".lower(): ("model", each) for each in new.adapted}
        return self.get(spec.id)


def _whole(where: str, spec: ModelSpec | Variant, entries: Mapping[str, tuple[str, ModelSpec | Variant]]) -> ModelSpec:
    """Return an entry with what it takes from its base among `entries`, by id. Raises ConfigError."""
    above: list[Variant] = []
    while isinstance(spec, Variant):
        if spec in above:
            raise ConfigError(f"{where}: base: {spec.id} would be its own base")
        above.append(spec)
        if spec.base.lower() not in entries:
            raise ConfigError(f"{where}: base: there is no entry {spec.base!r}; name the id of another entry")
        spec = entries[spec.base.lower()][1]
    for variant in reversed(above):
        spec = variant.of(spec)
    return spec


def user_path() -> Path:
    """Return the path of the user's own registry, which may not exist."""
    return config_home() / "models.yaml"


def default_path() -> Path:
    """Return the path of the package's models.yaml: at the top of a checkout, or where the wheel installed it."""
    checkout = Path(__file__).parents[2]
    if (checkout / "setup.cfg").is_file():
        return checkout / "models.yaml"
    try:
        shipped = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        shipped = []
    for file in shipped:
        if file.parts[-3:] == ("share", "locallab", "models.yaml"):
            return Path(str(file.locate())).resolve()
    raise ConfigError("the package's own models.yaml is missing: install locallab again")


def _taken(where: str, name: str, before: str, spec: ModelSpec | Variant) -> ConfigError:
    return ConfigError(f"{where}: the name {name!r} is taken already by {spec.id} ({before})")


@functools.cache
def shipped_digests() -> frozenset[str]:
    """Return the SHA-256 of the files of the shipped registry that come from PyPI: known to be good, since the tests load them.
    Read once. The digests of the others say what they are, not that llama.cpp can load them."""
    sources = (source for spec in Registry.load(default_path()) for source in spec.parts.values())
    return frozenset(source.sha256 for source in sources if isinstance(source, PypiSource))
