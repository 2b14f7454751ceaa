"""What clients are told about a model."""

from __future__ import annotations

from typing import Any

from locallab.models.registry import ModelSpec
from locallab.pool import Loaded, Pool


def entry(pool: Pool, spec: ModelSpec) -> dict[str, Any]:
    """A model of the registry, and how it stands."""
    error = pool.error(spec.id)
    status = pool.status(spec.id)
    return {
        "name": spec.id,
        "aliases": spec.aliases,
        "size": readable_size(spec.size),
        "size_bytes": spec.size,
        "context": spec.context,
        "description": spec.description,
        "recommended": spec.recommended,
        "loaded": status == "ready",
        "status": status,
        **({"error": error} if error else {}),
    }


def figures(pool: Pool, loaded: Loaded) -> dict[str, Any]:
    """The loaded model, with the figures it really has."""
    info = loaded.engine.info
    return {
        **entry(pool, loaded.spec),
        "size": readable_size(info.size_bytes),
        "size_bytes": info.size_bytes,
        "context": info.context,
        "trained_context": info.n_ctx_train,
        "kv_tokens": info.kv_tokens,
        "parameters": info.n_params,
        "architecture": info.architecture,
        "type": info.description,
        "device": info.device,
        "prefix_reuse": info.reuse,
        "loaded_at": loaded.created,
    }


def readable_size(size: int) -> str:
    """Bytes as a figure of decimal units, such as 98MB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g}{unit}"
    return f"{size}B"
