"""Which part of the API a path belongs to, for keys and rate limits. Paths are as `middleware.paths` leaves them."""

from __future__ import annotations

from typing import Literal

Area = Literal["uncounted", "native", "assistant", "dialect"]

OPEN = ("/health", "/docs", "/openapi.json", "/api/hello")
"""Answered without a key, with all below: monitors and browsers send none, and they tell nothing of anybody's requests."""

UNCOUNTED = (*OPEN, "/metrics")
"""Not limited. /metrics needs a key where keys are required: it tells what others do."""

NATIVE = ("/generate", "/chat", "/models", "/system")
ASSISTANT = ("/api/v1",)


def is_open(path: str) -> bool:
    """Whether the path is answered without a key."""
    return path == "/" or _below(path, OPEN)


def area(path: str) -> Area:
    """Whose rate limit counts the path. What is none of ours is a dialect's."""
    if path == "/" or _below(path, UNCOUNTED):
        return "uncounted"
    if _below(path, NATIVE):
        return "native"
    return "assistant" if _below(path, ASSISTANT) else "dialect"


def _below(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)
