"""The fetch of one part of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Called with the bytes fetched so far and in total (None: unknown), from one thread at a time."""

    def __call__(self, done: int, total: int | None) -> None: ...


@dataclasses.dataclass(frozen=True)
class PartFetch:
    """One part to fetch: its bytes (None: unknown), the disk space it needs, and the function that fetches it.

    `run` leaves the part in the store; it calls its argument with the number of bytes fetched so far.
    """

    size: int | None
    room: int
    run: Callable[[Callable[[int], None]], None]
