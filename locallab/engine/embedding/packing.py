"""Which sequences are computed together next. Pure: touches no model."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


@dataclasses.dataclass(eq=False, slots=True)
class Job:
    """One request: a row is wanted for each of its sequences. It is done when the future is, cancelled ones too."""

    sequences: Seq[Seq[int]]
    future: Future[Rows]
    rows: dict[int, Rows] = dataclasses.field(default_factory=dict)
    taken: int = 0


class Packing:
    """Takes one sequence of each request in turn, so that a short question does not wait for the end of a long list."""

    def __init__(self, tokens: int, sequences: int) -> None:
        """At most so many together; a longer sequence goes alone."""
        self._tokens = tokens
        self._sequences = sequences
        self._jobs: deque[Job] = deque()

    def __len__(self) -> int:
        """Requests of which something is left to take."""
        return len(self._jobs)

    def add(self, job: Job) -> None:
        self._jobs.append(job)

    def take(self) -> list[tuple[Job, int]]:
        """Mutates: the next batch, as requests and places in them. Empty only if nothing is left."""
        taken: list[tuple[Job, int]] = []
        room = self._tokens
        while self._jobs and len(taken) < self._sequences:
            job = self._jobs.popleft()
            if job.future.done():
                continue
            size = len(job.sequences[job.taken])
            if taken and size > room:
                self._jobs.appendleft(job)
                break
            room -= size
            taken.append((job, job.taken))
            job.taken += 1
            if job.taken < len(job.sequences):
                self._jobs.append(job)
        return taken

    def drain(self) -> Iterator[Job]:
        """Mutates: gives up every request that is left."""
        while self._jobs:
            yield self._jobs.popleft()
