"""What fetching one part of a model is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Is told how many bytes of a fetch are here, from one thread at a time."""

    def __call__(self, done: int, total: int | None) -> None: ...


@dataclasses.dataclass(frozen=True)
class Job:
    """One part to fetch: its bytes (None: unknown), how much room it needs on disk, and what fetches it.

    `run` is given what it calls with the number of bytes that are here; it leaves the part in the store.
    """

    size: int | None
    room: int
    run: Callable[[Callable[[int], None]], None]
