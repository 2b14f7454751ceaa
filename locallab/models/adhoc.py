"""Entries for models named on the fly: `hf:owner/repo:Q4_K_M`, its addresses on the Hub, and the path of a .gguf file.

Fetches nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from locallab.errors import ConfigError
from locallab.models.quants import is_projector
from locallab.models.spec import Adapter, FileSource, HubSource, ModelSpec, shards

HUB = "hf:"
_REPO = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB = re.compile(rf"{HUB}({_REPO})/({_REPO})(?::([A-Za-z0-9][A-Za-z0-9._/+!-]*))?", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/", re.IGNORECASE)
_SCALED = re.compile(r"(.+):([+-]?\d*\.?\d+)")
_FILE = re.compile(r"/(?:resolve|blob|raw)/main/")


def canonical(name: str) -> str:
    """Return `name`, in the form hf:owner/repo:Q4_K_M if it is an address of the Hub, as its pages offer them: hf.co/owner/repo
    with a quantization, the page of a repository or of a file in it."""
    prefix = _ADDRESS.match(name)
    if prefix is None:
        return name
    rest = name[prefix.end() :].partition("?")[0].rstrip("/").removesuffix("/tree/main").removesuffix(":latest")
    return HUB + _FILE.sub(":", rest, count=1)


def is_hub(name: str) -> bool:
    """Return whether `name` is a repository on the Hub."""
    return canonical(name).lower().startswith(HUB)


def is_adhoc(name: str) -> bool:
    """Return whether `name` contains its own source, so that no registry entry is needed."""
    return is_hub(name) or name.lower().endswith(".gguf") or os.sep in name


def spec(name: str) -> ModelSpec:
    """Return the entry for `name`. Raises ConfigError with the expected form."""
    name = canonical(name)
    if not is_hub(name):
        path = Path(os.path.expanduser(name)).absolute()
        if not path.is_file():
            hint = f"; for a repository on the Hub write hf:{name}" if re.fullmatch(f"{_REPO}/{_REPO}", name) else ""
            raise ConfigError(f"model: there is no file {path}{hint}")
        files = [path.with_name(shard) for shard in shards(path.name)]
        return ModelSpec(
            id=re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-") or "model",
            source=FileSource(files[0]),
            size=sum(file.stat().st_size for file in files if file.is_file()) or None,
            description=f"the file {path}",
            mmproj=_beside(files[0]),
        )
    found = _HUB.fullmatch(name)
    if found is None:
        raise ConfigError(f"model: {name!r}: expected hf:owner/repo, hf:owner/repo:QUANTIZATION or hf:owner/repo:file.gguf")
    owner, repo, which = found.groups()
    is_file = (which or "").lower().endswith(".gguf")
    if which and not is_file:
        which = which.upper()  # one spelling, since ids are case-insensitive
    source = HubSource(f"{owner}/{repo}", file=which if is_file else None, quantization=None if is_file else which)
    # Two dashes, which the Hub forbids in names: no two repositories share an id and thus a place on disk.
    tag = re.sub("[^A-Za-z0-9._-]", "-", Path(which).with_suffix("").as_posix() if is_file else which) if which else ""
    model_id = f"{owner}--{repo}:{tag}" if tag else f"{owner}--{repo}"
    return ModelSpec(
        id=model_id,
        source=source,
        description=f"{which or 'a model'} of {owner}/{repo} on the Hugging Face Hub",
        mmproj=HubSource(source.repo, projector=True),
    )


def _beside(path: Path) -> FileSource | None:
    """Return the projector beside a model's file: the only one in its folder whose name says that it is one."""
    try:
        names = [file.name for file in path.parent.iterdir()]
    except OSError:  # a folder that may be entered, not read
        return None
    found = [name for name in names if is_projector(name)]
    return FileSource(path.with_name(found[0])) if len(found) == 1 and not is_projector(path.name) else None


def adapters(texts: str | Iterable[str] | None) -> tuple[Adapter, ...]:
    """Return the adapters of the setting `lora`, comma-separated or a list, each NAME=FILE or NAME=FILE:SCALE. Raises
    ConfigError."""
    return tuple(map(_adapter, texts.split(",") if isinstance(texts, str) else texts or ()))


def _adapter(text: str) -> Adapter:
    name, _, rest = text.partition("=")
    found = _SCALED.fullmatch(rest)
    file, scale = (found[1], float(found[2])) if found else (rest, 1.0)
    path = Path(os.path.expanduser(file)).absolute()
    raw = {"name": name if rest else "", "source": {"kind": "file", "path": str(path)}, "scale": scale}
    try:
        adapter = msgspec.convert(raw, Adapter, dec_hook=lambda kind, value: kind(value))
    except msgspec.ValidationError:
        raise ConfigError(
            f"lora: {text!r}: expected NAME=FILE or NAME=FILE:SCALE, with letters, digits, '.', '_' and '-' in the name and a "
            "scale from -100 to 100"
        ) from None
    if not path.is_file():
        raise ConfigError(f"lora: {name}: there is no file {path}")
    return adapter
