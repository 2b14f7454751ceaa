"""Reading and extending registry files. Errors name the file, the line, the entry and the key."""

from __future__ import annotations

import os
import re
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml

from locallab import private_files
from locallab.errors import ConfigError
from locallab.models.spec import FileSource, HubSource, MemoryClass, Modality, ModelSpec, PypiSource, Variant, key_of
from locallab.settings import EngineSettings, resolve

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
KINDS = {"file": FileSource, "hub": HubSource, "pypi": PypiSource}
SIZES = ("size", "active", "memory")
"""Keys whose values may be figures such as 4.7 GB."""
KNOWN = {"kind": tuple(KINDS), "modalities": get_args(Modality), "recommended": get_args(MemoryClass)}
"""Keys with a few values, which an error lists."""


def read(path: Path) -> Iterator[tuple[str, ModelSpec | Variant]]:
    """Yield each entry with its place in the file, for error messages. Raises ConfigError."""
    try:
        loader = yaml.SafeLoader(path.read_bytes())
        root = loader.get_single_node()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    if [key.value for key, _ in pairs] != ["models"] or not isinstance(pairs[0][1], yaml.SequenceNode):
        raise ConfigError(f"{path}: must hold one key, 'models', with a list of entries")
    if not pairs[0][1].value:
        raise ConfigError(f"{path}: models: the list is empty")
    for index, node in enumerate(pairs[0][1].value):
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}:{node.start_mark.line + 1}: models[{index}]: must be a mapping, got {node.value!r}")
        try:
            entry: dict[str, Any] = loader.construct_document(node)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}:{node.start_mark.line + 1}: not valid YAML: {error}") from None
        yield _Entry(path, index, node, entry).read()


class _Entry:
    """One entry being checked, with the line of each of its keys."""

    def __init__(self, path: Path, index: int, node: yaml.MappingNode, entry: dict[str, Any]) -> None:
        self._path = path
        self._node = node
        self._entry = entry
        self._name = entry.get("id", f"models[{index}]")

    def read(self) -> tuple[str, ModelSpec | Variant]:
        """Return the entry's place in the file and the entry. Raises ConfigError."""
        for keys in _duplicates(self._node, ()):
            raise self._error(keys, "appears twice")
        for key in SIZES:
            if isinstance(self._entry.get(key), str):
                self._entry[key] = self._bytes(key)

        def decode_path(kind: type, value: Any) -> Path:
            if not value or not isinstance(value, str):
                raise TypeError(f"Expected a path, got {value!r}")
            return self._path.parent / Path(os.path.expanduser(value))

        kind: type[ModelSpec | Variant] = Variant if "base" in self._entry else ModelSpec
        if kind is Variant and "source" in self._entry:
            raise self._error(("base",), "has the files: leave out source, or base")
        try:
            spec = msgspec.convert(self._entry, kind, dec_hook=decode_path)
        except msgspec.ValidationError as error:
            raise self._error(*_readable(str(error))) from None
        if isinstance(spec, ModelSpec):
            self._check(spec)
        if "context" in spec.settings:
            raise self._error(("settings", "context"), "set it once, as the entry's own context")
        for name, value in spec.settings.items():
            resolve(EngineSettings, (f"{self._where(('settings', name))}: settings", {name: value}))
        return self._where(()), spec

    def _bytes(self, key: str) -> int:
        """Return the bytes that the value of `key` means, a figure with a unit. Raises ConfigError."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", self._entry[key].strip())
        unit = UNITS.get(found[2].upper() or "B") if found else None
        if found is None or unit is None:
            raise self._error((key,), f"expected bytes or a figure like '4.7 GB', got {self._entry[key]!r}")
        return round(float(found[1]) * unit)

    def _check(self, spec: ModelSpec) -> None:
        """Compare keys with each other. Raises ConfigError."""
        for part, source in spec.parts.items():
            if isinstance(source, HubSource) and source.file and source.quantization:
                raise self._error((key_of(part), "quantization"), "the file is named already: leave out one of the two")
        if spec.size and spec.memory and spec.memory < spec.size:
            raise self._error(("memory",), "must have room for the file, whose size is larger")
        if spec.size and spec.active and spec.active > spec.size:
            raise self._error(("active",), "a token cannot read more than the size of the file")
        if spec.modalities and "text" not in spec.modalities:
            raise self._error(("modalities",), "must contain text")
        if {"image", "audio"}.intersection(spec.modalities) and spec.mmproj is None:
            raise self._error(("modalities",), "images and audio need a projector: name its source as mmproj")

    def _error(self, keys: tuple[str, ...], reason: str) -> ConfigError:
        return ConfigError(f"{self._where(keys)}: {'.'.join(keys)}: {reason}")

    def _where(self, keys: tuple[str, ...]) -> str:
        """Return file, line and entry as text; the line is that of the last existing one of the nested `keys`."""
        node: yaml.Node = self._node
        line = node.start_mark.line
        for key in keys:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            found = [(name, value) for name, value in pairs if name.value == key.partition("[")[0]]
            if not found:
                break
            line, node = found[-1][0].start_mark.line, found[-1][1]  # of duplicates the second
        return f"{self._path}:{line + 1}: {self._name}"


def _duplicates(node: yaml.Node, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield each key that appears twice in a mapping below `node`; the YAML reader would silently take the second."""
    seen = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value in seen:
            yield (*above, str(key.value))
        seen.add(key.value)
        yield from _duplicates(value, (*above, str(key.value)))


def _readable(message: str) -> tuple[tuple[str, ...], str]:
    """Split an error message of msgspec into the key it concerns and the problem."""
    found = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message)
    reason, path = (found[1], found[2]) if found else (message, "")
    keys = tuple(path.split(".")) if path else ()
    if field := re.fullmatch(r"Object contains unknown field `(.*)`", reason):
        return (*keys, field[1]), "unknown key"
    if field := re.fullmatch(r"Object missing required field `(.*)`", reason):
        return (*keys, field[1]), "is missing"
    if keys and (known := KNOWN.get(keys[-1].partition("[")[0])):
        reason += f"; known: {', '.join(known)}"
    return keys, reason


NEW = "# Models of your own; the models.yaml that comes with LocalLab documents every key.\nmodels:\n"


def append(path: Path, spec: ModelSpec) -> None:
    """Append `spec` to the file, which is created if missing; readers see either the old file or the new one.

    Raises ConfigError, leaving the file unchanged, if it cannot be read or written, or does not list one entry below another.
    """
    try:
        text = path.read_text() if path.exists() else NEW
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    before = list(read(path)) if path.exists() else []
    if any(spec.id.lower() == other.id.lower() for _, other in before):
        raise ConfigError(f"{path}: the id {spec.id!r} is taken already")
    try:
        private_files.make_folder(path.parent)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".models-") as folder:
            new = Path(folder) / path.name
            new.write_text(with_entry(text, spec))
            try:
                complete = len(list(read(new))) == len(before) + 1
            except ConfigError:
                complete = False
            if not complete:
                raise ConfigError(
                    f"{path}: write the list of models one entry below another, each after a dash; nothing was changed"
                )
            os.replace(new, path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def with_entry(text: str, spec: ModelSpec) -> str:
    """Return the text of a registry file with `spec` appended. Pure."""
    root: Any = yaml.compose(text, yaml.SafeLoader)
    listed = root.value[0][1]
    column = listed.start_mark.column if isinstance(listed, yaml.SequenceNode) else 2
    keys: dict[str, Any] = msgspec.to_builtins(spec, enc_hook=str)
    first = {key: keys.pop(key) for key in ("id", "description")}
    written = {**first, **{key: value for key, value in keys.items() if value}}
    entry = yaml.safe_dump([written], sort_keys=False, allow_unicode=True, default_flow_style=None, width=10**6)
    return text + ("" if text.endswith("\n") else "\n") + textwrap.indent(entry, " " * column)
