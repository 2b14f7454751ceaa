"""Fake weights, and a Progress that records its calls."""

from __future__ import annotations

WEIGHTS = b"GGUF" + bytes(range(256)) * 64


class Calls:
    """A Progress that records its calls."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    def __call__(self, done: int, total: int | None) -> None:
        self.seen.append((done, total))
