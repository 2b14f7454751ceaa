"""Models in the stores of other programs on this machine: the Hugging Face cache and Ollama's store. Read-only."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from locallab.models import quants
from locallab.models.spec import FileSource, HubSource, ModelSpec, shards

log = logging.getLogger(__name__)

Keeper = Literal["huggingface", "ollama"]
PROGRAMS: dict[Keeper, str] = {"huggingface": "the Hugging Face cache", "ollama": "Ollama"}
OLLAMA_LAYERS = {"application/vnd.ollama.image.model": "model", "application/vnd.ollama.image.projector": "mmproj"}
SERVICE = Path("/usr/share/ollama/.ollama/models")
"""Ollama's store when it runs as a service."""


@dataclasses.dataclass(frozen=True)
class Importable:
    """A model in another program's store. `name` is that program's name for it; `files` are all files of a split model."""

    name: str
    keeper: Keeper
    files: tuple[Path, ...]
    mmproj: Path | None = None

    @property
    def path(self) -> Path:
        return self.files[0]

    @property
    def size(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def spec(self, model_id: str) -> ModelSpec:
        """Return a registry entry that uses the files in place."""
        return ModelSpec(
            id=model_id,
            source=FileSource(self.path),
            size=self.size,
            description=f"{self.name}, from {PROGRAMS[self.keeper]}",
            mmproj=FileSource(self.mmproj) if self.mmproj else None,
        )

    @property
    def model_id(self) -> str:
        """Its name as an id, with characters not allowed in ids replaced."""
        words = [re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("._-") for word in self.name.split(":", 1)]
        return ":".join(filter(None, words)) or "model"


def scan() -> list[Importable]:
    """Return the models in the stores of other programs, sorted by name."""
    return sorted([*_scan_hub(), *_scan_ollama()], key=lambda each: (each.name.lower(), each.keeper))


# ---- the Hugging Face cache


def found(source: HubSource) -> tuple[Path, ...]:
    """Return the files of this source in the Hugging Face cache if all are there and match their digests, else (). Sends no
    request."""
    repo = _hub_cache() / f"models--{source.repo.replace('/', '--')}"
    revision = source.revision or "main"
    with contextlib.suppress(OSError):  # a commit, or not cached
        revision = (repo / "refs" / revision).read_text().strip()
    snapshot = repo / "snapshots" / revision
    names = [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*.gguf") if file.is_file()]
    try:
        if source.projector:
            chosen = quants.projector(names)
        else:
            chosen = shards(source.file) if source.file else quants.choose(names, source.quantization)
    except quants.NoChoice:
        return ()
    if not chosen or not set(chosen) <= set(names):
        return ()
    files = tuple(snapshot / name for name in chosen)
    # A blob is named by its SHA-256; a file that is no blob cannot be checked.
    blobs = [file.resolve() for file in files]
    return files if all(re.fullmatch("[0-9a-f]{64}", blob.name) and _matches(blob, blob.name) for blob in blobs) else ()


def _hub_cache() -> Path:
    """Return the cache folder as huggingface_hub does, but by the current environment."""
    from huggingface_hub import constants  # slow to import

    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expanduser(os.path.expandvars(named)))
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expanduser(os.path.expandvars(home))) / "hub"
    return Path(constants.HF_HUB_CACHE)


def _scan_hub() -> Iterator[Importable]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir(_hub_cache()).repos
    except (CacheNotFound, ValueError):
        return
    for repo in repos:
        newest: dict[str, Importable] = {}
        for revision in sorted(repo.revisions, key=lambda each: each.last_modified):
            snapshot = revision.snapshot_path
            offers = quants.offers(file.file_path.relative_to(snapshot).as_posix() for file in revision.files)
            labels = [offer.label for offer in offers]
            for offer in offers:
                files = tuple(snapshot / name for name in offer.files)
                # By the quantization where it is unambiguous.
                which = offer.label if offer.label and labels.count(offer.label) == 1 else Path(offer.name).stem
                if _is_gguf(files[0]):
                    name = f"{repo.repo_id}:{which}"
                    newest[name] = Importable(name, "huggingface", files)
        yield from newest.values()


# ---- Ollama


def blob(sha256: str | None, size: int | None) -> Path | None:
    """Return the file of this digest in Ollama's store if it is there and intact."""
    for root in _ollama_roots() if sha256 else ():
        for name in (f"sha256-{sha256}", f"sha256:{sha256}"):
            path = root / "blobs" / name
            if path.is_file() and path.stat().st_size == size and sha256 and _matches(path, sha256):
                return path
    return None


def _ollama_roots() -> list[Path]:
    named = os.environ.get("OLLAMA_MODELS")
    return [Path(os.path.expanduser(named))] if named else [Path(os.path.expanduser("~/.ollama")) / "models", SERVICE]


def _scan_ollama() -> Iterator[Importable]:
    seen = set()
    for root in _ollama_roots():
        for manifest in sorted(root.glob("manifest*/*/*/*/*")):
            layers = _layers(root, manifest)
            host, namespace, model, tag = manifest.parts[-4:]
            name = f"{model}:{tag}"  # as Ollama writes it: without its defaults
            if host not in ("registry.ollama.ai", "ollama.com"):
                name = f"{host}/{namespace}/{name}"
            elif namespace != "library":
                name = f"{namespace}/{name}"
            if "model" in layers and name not in seen:
                seen.add(name)
                yield Importable(name, "ollama", (layers["model"],), layers.get("mmproj"))


def _layers(root: Path, manifest: Path) -> dict[str, Path]:
    """Return the GGUF files of a model by part, by its manifest; {} for a file that is no manifest."""
    try:
        layers = json.loads(manifest.read_bytes())["layers"]
        named = {OLLAMA_LAYERS[layer["mediaType"]]: layer for layer in layers if layer["mediaType"] in OLLAMA_LAYERS}
        found = {}
        for part, layer in named.items():
            blobs = [root / "blobs" / layer["digest"].replace(":", mark) for mark in "-:"]
            path = next(filter(Path.is_file, blobs), None)
            if path is not None and path.stat().st_size == layer["size"] and _is_gguf(path):
                found[part] = path
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return {}


# ---- both


def _matches(path: Path, sha256: str) -> bool:
    """Check the file's digest. Reads the whole file, which is logged because a large one takes seconds."""
    log.info("checking %s against its digest", path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error)
        return False
    if digest.hexdigest() != sha256:
        log.warning("%s is damaged: it is not used", path)
    return digest.hexdigest() == sha256


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False
