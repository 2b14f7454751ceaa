"""Which models exist: the shipped models.yaml, the user's own, further ones, and models named on the fly."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import msgspec

from locallab.errors import ConfigError, UnknownModel
from locallab.models import adhoc, registry_file
from locallab.models.spec import FileSource, HubSource, ModelSpec, PypiSource, Source
from locallab.settings import config_home

__all__ = ["FileSource", "HubSource", "ModelSpec", "PypiSource", "Registry", "Source", "default_path", "user_path"]


class Registry:
    """The models of one or more files, in file order. Names are case-insensitive."""

    def __init__(self) -> None:
        self._specs: list[ModelSpec] = []
        self._names: dict[str, tuple[str, ModelSpec]] = {}  # name -> where it was said, and the model

    @classmethod
    def load(cls, *paths: Path) -> Registry:
        """Reads the files in order; an entry takes the place of one with the same id in an earlier file.

        Raises ConfigError that names the file, the line, the entry and the key.
        """
        merged: dict[str, tuple[str, ModelSpec]] = {}
        for path in paths:
            merged |= _by_id(path)
        registry = cls()
        for where, spec in merged.values():
            registry.add(where, spec)
        return registry

    @classmethod
    def discover(cls, extra: str | None = None) -> Registry:
        """The registry everybody uses: the shipped file, the user's own if there is one, then `extra`: the setting `registry`,
        paths separated by commas."""
        user = user_path()
        named = [Path(path.strip()).expanduser() for path in (extra or "").split(",") if path.strip()]
        return cls.load(default_path(), *([user] if user.exists() else []), *named)

    def get(self, model_id: str) -> ModelSpec:
        """The model of this id or alias; raises UnknownModel with the nearest ids."""
        if model_id.lower() not in self._names:
            raise UnknownModel.near(model_id, {name: spec.id for name, (_, spec) in self._names.items()})
        return self._names[model_id.lower()][1]

    def resolve(self, name: str) -> ModelSpec:
        """As `get`; besides, `hf:owner/repo:Q4_K_M` and the path of a .gguf file get an entry here, found by that spelling too.

        For names that the user of this machine gave: a client of the server must not be able to make it fetch anything.
        """
        if name.lower() in self._names or not adhoc.is_adhoc(name):
            return self.get(name)
        spec = adhoc.spec(name)
        same = self._names.get(spec.id.lower())
        if same is not None and same[1].source == spec.source:
            spec = same[1]
        else:
            spec = msgspec.structs.replace(spec, id=self._free(spec.id))
            self.add("model", spec)
        self._names[name.lower()] = ("model", spec)
        return spec

    @property
    def default(self) -> ModelSpec:
        """The first entry."""
        return self._specs[0]

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def add(self, where: str, spec: ModelSpec) -> None:
        """Adds an entry that stands at `where`. Raises ConfigError if one of its names is taken."""
        for name in spec.names:
            before, taken = self._names.setdefault(name.lower(), (where, spec))
            if taken is not spec:
                raise ConfigError(f"{where}: the name {name!r} is taken already by {taken.id} ({before})")
        self._specs.append(spec)

    def _free(self, model_id: str) -> str:
        """This id, or with a number behind it if something else has it."""
        name, number = model_id, 1
        while name.lower() in self._names:
            number += 1
            name = f"{model_id}-{number}"
        return name


def user_path() -> Path:
    """The user's own registry, which need not exist."""
    return config_home() / "models.yaml"


def default_path() -> Path:
    """The models.yaml that comes with this package: at the top of a checkout, or where the wheel put it."""
    checkout = Path(__file__).parents[2]
    if (checkout / "setup.cfg").is_file():
        return checkout / "models.yaml"
    try:
        shipped = metadata.files("locallab") or []
    except metadata.PackageNotFoundError:
        shipped = []
    for file in shipped:
        if file.parts[-3:] == ("share", "locallab", "models.yaml"):
            return Path(str(file.locate())).resolve()
    raise ConfigError("the package's own models.yaml is missing: install locallab again")


def _by_id(path: Path) -> dict[str, tuple[str, ModelSpec]]:
    found: dict[str, tuple[str, ModelSpec]] = {}
    for where, spec in registry_file.read(path):
        before = found.setdefault(spec.id.lower(), (where, spec))
        if before[1] is not spec:
            raise ConfigError(f"{where}: the name {spec.id!r} is taken already by {before[1].id} ({before[0]})")
    return found
