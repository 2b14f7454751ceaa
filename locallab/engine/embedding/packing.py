"""Packing of sequences into batches for embedding. Pure: touches no model."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from locallab.engine.caller import LOCAL, Caller

Rows = npt.NDArray[np.float32]


@dataclasses.dataclass(eq=False, slots=True)
class EmbedJob:
    """One request for a row for each of its sequences. It has ended when its future is done, by cancellation too.

    `taken` counts the sequences that are in a batch, or were.
    """

    sequences: Seq[Seq[int]]
    future: Future[Rows]
    caller: Caller = LOCAL
    rows: dict[int, Rows] = dataclasses.field(default_factory=dict)
    taken: int = 0


class Packing:
    """A queue of jobs that takes one sequence of each in turn, so that a short job does not wait for the end of a long one."""

    def __init__(self, tokens: int, sequences: int) -> None:
        """Limit a batch to so many tokens and sequences; a sequence with more tokens gets a batch of its own."""
        self._tokens = tokens
        self._sequences = sequences
        self._jobs: deque[EmbedJob] = deque()

    def __len__(self) -> int:
        """Return the number of jobs with sequences left to take."""
        return len(self._jobs)

    def add(self, job: EmbedJob) -> None:
        self._jobs.append(job)

    def take(self) -> list[tuple[EmbedJob, int]]:
        """Remove and return the next batch: jobs with the index of a sequence in each. Empty only if nothing is left."""
        batch: list[tuple[EmbedJob, int]] = []
        room = self._tokens
        while self._jobs and len(batch) < self._sequences:
            job = self._jobs.popleft()
            if job.future.done():
                continue
            size = len(job.sequences[job.taken])
            if batch and size > room:
                self._jobs.appendleft(job)
                break
            room -= size
            batch.append((job, job.taken))
            job.taken += 1
            if job.taken < len(job.sequences):
                self._jobs.append(job)
        return batch

    def drain(self) -> Iterator[EmbedJob]:
        """Remove and yield every job that is left."""
        while self._jobs:
            yield self._jobs.popleft()
