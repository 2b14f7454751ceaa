"""Model stores in the layouts of other programs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hub_cache(home: Path, repo: str, files: dict[str, bytes], commit: str = "c" * 40, ref: str | None = "main") -> Path:
    """Write a repository into the cache of a Hugging Face home. Return its snapshot."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    for name, content in files.items():
        blob = root / "blobs" / sha256(content)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = root / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / ref).write_text(commit)
    return root / "snapshots" / commit


def ollama(root: Path, name: str, model: bytes, projector: bytes | None = None, manifests: str = "manifests") -> Path:
    """Write a model into Ollama's store; `name` is host/namespace/model/tag. Return its blob."""
    layers = []
    for kind, content in (("template", b"{{ .Prompt }}"), ("model", model), ("projector", projector)):
        if content is not None:
            blob = root / "blobs" / f"sha256-{sha256(content)}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            media = f"application/vnd.ollama.image.{kind}"
            layers.append({"mediaType": media, "digest": f"sha256:{sha256(content)}", "size": len(content)})
    manifest = root / manifests / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return root / "blobs" / f"sha256-{sha256(model)}"
