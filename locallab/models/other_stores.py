"""Weights that other programs keep on this machine: the Hugging Face cache and Ollama's store. Read only, never changed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from locallab.models import quants
from locallab.models.spec import FileSource, HubSource, ModelSpec, shards

log = logging.getLogger(__name__)

Keeper = Literal["huggingface", "ollama"]
PROGRAMS: dict[Keeper, str] = {"huggingface": "the Hugging Face cache", "ollama": "Ollama"}
OLLAMA_LAYERS = {"application/vnd.ollama.image.model": "model", "application/vnd.ollama.image.projector": "mmproj"}
SERVICE = Path("/usr/share/ollama/.ollama/models")  # where Ollama keeps models when it runs as a service


@dataclasses.dataclass(frozen=True)
class Importable:
    """A model that another program has here. `name` is what that program calls it; `files` are all of a split model's."""

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
        """An entry for it: the files are used where they lie."""
        return ModelSpec(
            id=model_id,
            source=FileSource(self.path),
            size=self.size,
            description=f"{self.name}, from {PROGRAMS[self.keeper]}",
            mmproj=FileSource(self.mmproj) if self.mmproj else None,
        )

    @property
    def model_id(self) -> str:
        """An id that fits it: its name with the characters that no id may have replaced."""
        words = [re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("._-") for word in self.name.split(":", 1)]
        return ":".join(filter(None, words)) or "model"


def scan() -> list[Importable]:
    """The models that other programs have here, by name."""
    return sorted([*_scan_hub(), *_scan_ollama()], key=lambda each: (each.name.lower(), each.keeper))


# ---- the Hugging Face cache


def found(source: HubSource) -> tuple[Path, ...]:
    """The files of this source in the Hugging Face cache, all of them and as their digests say, else none. No network."""
    snapshot = _snapshot(source)
    if snapshot is None:
        return ()
    names = [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*.gguf") if file.is_file()]
    try:
        chosen = shards(source.file) if source.file else quants.choose(names, source.quantization)
    except quants.NoChoice:
        return ()
    files = tuple(snapshot / name for name in chosen if name in names)
    return files if len(files) == len(chosen) and all(map(_is_whole, files)) else ()


def _hub_cache() -> Path:
    """As huggingface_hub finds it, but by the environment as it is now."""
    from huggingface_hub import constants  # imports slowly

    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(named)).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


def _snapshot(source: HubSource) -> Path | None:
    repo = _hub_cache() / f"models--{source.repo.replace('/', '--')}"
    revision = source.revision or "main"
    with contextlib.suppress(OSError):  # a commit, or nothing that is cached
        revision = (repo / "refs" / revision).read_text().strip()
    snapshot = repo / "snapshots" / revision
    return snapshot if snapshot.is_dir() else None


def _is_whole(file: Path) -> bool:
    """Whether the file is what the name of its blob, its SHA-256, says. A file that is no blob cannot be checked."""
    blob = file.resolve()
    return bool(re.fullmatch("[0-9a-f]{64}", blob.name)) and _is(blob, blob.name)


def _scan_hub() -> Iterator[Importable]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir(_hub_cache()).repos
    except (CacheNotFound, ValueError):
        return
    for repo in repos:
        newest: dict[str, Importable] = {}
        for revision in sorted(repo.revisions, key=lambda each: each.last_modified):
            names = {file.file_path.relative_to(revision.snapshot_path).as_posix() for file in revision.files}
            newest |= {each.name: each for each in _offered(repo.repo_id, revision.snapshot_path, names)}
        yield from newest.values()


def _offered(repo: str, snapshot: Path, names: Iterable[str]) -> Iterator[Importable]:
    """The models of one snapshot, called by their quantization where that says which is meant."""
    offers = quants.offers(names)
    labels = [offer.label for offer in offers]
    for offer in offers:
        files = tuple(snapshot / name for name in offer.files)
        which = offer.label if offer.label and labels.count(offer.label) == 1 else Path(offer.name).stem
        if _is_gguf(files[0]):
            yield Importable(f"{repo}:{which}", "huggingface", files)


# ---- Ollama


def blob(sha256: str | None, size: int | None) -> Path | None:
    """The file of this digest in Ollama's store, if it is there and whole."""
    for root in _ollama_roots() if sha256 else ():
        for name in (f"sha256-{sha256}", f"sha256:{sha256}"):
            path = root / "blobs" / name
            if path.is_file() and path.stat().st_size == size and sha256 and _is(path, sha256):
                return path
    return None


def _ollama_roots() -> list[Path]:
    named = os.environ.get("OLLAMA_MODELS")
    return [Path(named).expanduser()] if named else [Path.home() / ".ollama" / "models", SERVICE]


def _scan_ollama() -> Iterator[Importable]:
    seen = set()
    for root in _ollama_roots():
        for manifest in sorted(root.glob("manifest*/*/*/*/*")):
            layers = _layers(root, manifest)
            name = _ollama_name(manifest.parts[-4:])
            if "model" in layers and name not in seen:
                seen.add(name)
                yield Importable(name, "ollama", (layers["model"],), layers.get("mmproj"))


def _layers(root: Path, manifest: Path) -> dict[str, Path]:
    """The GGUF files of a model by part, as its manifest says; none for a file that is no manifest."""
    try:
        layers = json.loads(manifest.read_bytes())["layers"]
        named = {OLLAMA_LAYERS[layer["mediaType"]]: layer for layer in layers if layer["mediaType"] in OLLAMA_LAYERS}
        return {
            part: path
            for part, layer in named.items()
            for path in _blobs(root, layer["digest"])
            if path.stat().st_size == layer["size"] and _is_gguf(path)
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _blobs(root: Path, digest: str) -> Iterable[Path]:
    places = (root / "blobs" / digest.replace(":", mark) for mark in "-:")
    return [place for place in places if place.is_file()][:1]


def _ollama_name(parts: Sequence[str]) -> str:
    """host, namespace, model and tag as Ollama writes them: without what it takes for granted."""
    host, namespace, model, tag = parts
    if host not in ("registry.ollama.ai", "ollama.com"):
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == "library" else f"{namespace}/{model}:{tag}"


# ---- both


def _is(path: Path, sha256: str) -> bool:
    """Reads the whole file; says so, since a large one takes seconds."""
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
