"""Adds an entry to a registry file by hand, as it were: what the user wrote there, comments too, stays as it is."""

from __future__ import annotations

import os
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import yaml

from locallab.errors import ConfigError
from locallab.models import entries
from locallab.models.spec import ModelSpec

NEW = "# Models of your own; the models.yaml that comes with LocalLab documents every key.\nmodels:\n"


def append(path: Path, spec: ModelSpec) -> None:
    """Writes `spec` as the last entry of the file, which is made if there is none; readers see the old file or the new one.

    Raises ConfigError, and changes nothing, if the file cannot be read or written, or is not laid out one entry below another.
    """
    try:
        text = path.read_text() if path.exists() else NEW
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    before = list(entries.read(path)) if path.exists() else []
    if any(spec.id.lower() == other.id.lower() for _, other in before):
        raise ConfigError(f"{path}: the id {spec.id!r} is taken already")
    try:
        _replace(path, with_entry(text, spec), len(before) + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def with_entry(text: str, spec: ModelSpec) -> str:
    """The text of a registry file with one more entry at its end. Pure."""
    root: Any = yaml.compose(text, yaml.SafeLoader)
    listed = root.value[0][1]
    column = listed.start_mark.column if isinstance(listed, yaml.SequenceNode) else 2
    entry = yaml.safe_dump([_plain(spec)], sort_keys=False, allow_unicode=True, default_flow_style=None, width=10**6)
    return text + ("" if text.endswith("\n") else "\n") + textwrap.indent(entry, " " * column)


def _plain(spec: ModelSpec) -> dict[str, Any]:
    """The keys of an entry that say something."""
    said: dict[str, Any] = msgspec.to_builtins(spec, enc_hook=str)
    first = {key: said.pop(key) for key in ("id", "description")}
    return {**first, **{key: value for key, value in said.items() if value}}


def _replace(path: Path, text: str, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".models-") as folder:
        new = Path(folder) / path.name
        new.write_text(text)
        try:
            whole = len(list(entries.read(new))) == count
        except ConfigError:
            whole = False
        if not whole:
            raise ConfigError(
                f"{path}: write the list of models one entry below another, each after a dash; nothing was changed"
            )
        os.replace(new, path)
