"""Packing of sequences into batches for embedding. Pure: touches no model."""

from __future__ import annotations

import dataclasses
import itertools
import time
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

    `taken` counts the sequences that are in a batch, or were; `submitted` is when it was made (time.perf_counter).
    """

    sequences: Seq[Seq[int]]
    future: Future[Rows]
    caller: Caller = LOCAL
    rows: dict[int, Rows] = dataclasses.field(default_factory=dict)
    taken: int = 0
    submitted: float = dataclasses.field(default_factory=time.perf_counter)
    id: int = dataclasses.field(default_factory=itertools.count().__next__)

    @property
    def computed(self) -> int:
        """Tokens of the sequences taken."""
        return sum(map(len, self.sequences[: self.taken]))


@dataclasses.dataclass(slots=True)
class _Line:
    """The jobs of one caller, and the tokens for each weight that were taken of them, from where others were when it came."""

    jobs: deque[EmbedJob] = dataclasses.field(default_factory=deque)
    taken: float = 0.0


class Packing:
    """A queue of jobs. Callers take turns, counted in tokens, and of one caller each job gives one sequence in turn, so that a
    short job does not wait for the end of a long one."""

    def __init__(self, tokens: int, sequences: int) -> None:
        """Limit a batch to so many tokens and sequences; a sequence with more tokens gets a batch of its own."""
        self._tokens = tokens
        self._sequences = sequences
        self._lines: dict[str, _Line] = {}

    def __len__(self) -> int:
        """Return the number of jobs with sequences left to take."""
        return sum(len(line.jobs) for line in self._lines.values())

    def __iter__(self) -> Iterator[EmbedJob]:
        """Yield the jobs with sequences left to take."""
        return (job for line in self._lines.values() for job in line.jobs)

    def add(self, job: EmbedJob) -> None:
        least = min((line.taken for line in self._lines.values()), default=0.0)
        self._lines.setdefault(job.caller.id, _Line(taken=least)).jobs.append(job)

    def take(self) -> list[tuple[EmbedJob, int]]:
        """Remove and return the next batch: jobs with the index of a sequence in each. Empty only if nothing is left."""
        batch: list[tuple[EmbedJob, int]] = []
        room = self._tokens
        while self._lines and len(batch) < self._sequences:
            id, line = min(self._lines.items(), key=lambda each: each[1].taken)
            job = line.jobs.popleft()
            size = len(job.sequences[job.taken])
            fits = not batch or size <= room
            if not fits:
                line.jobs.appendleft(job)
            elif not job.future.done():
                room -= size
                line.taken += size / job.caller.weight
                batch.append((job, job.taken))
                job.taken += 1
                if job.taken < len(job.sequences):
                    line.jobs.append(job)
            if not line.jobs:
                del self._lines[id]
            if not fits:
                break
        return batch

    def crowded_out(self, newest: EmbedJob) -> EmbedJob:
        """Remove and return the job that has to leave a full queue: the last that has not begun of the caller with most of them
        for its weight, or else the newest, which has just come."""
        fresh = {id: [job for job in line.jobs if not job.taken] for id, line in self._lines.items()}
        mine = newest.caller.id
        id = max(filter(fresh.get, fresh), key=lambda id: (len(fresh[id]) / fresh[id][0].caller.weight, id == mine))
        job = fresh[id][-1]
        self._lines[id].jobs.remove(job)
        if not self._lines[id].jobs:
            del self._lines[id]
        return job

    def drain(self) -> Iterator[EmbedJob]:
        """Remove and yield every job that is left."""
        while self._lines:
            _, line = self._lines.popitem()
            yield from line.jobs
