"""What one engine has done and how long it took, since it was loaded: exact counts, and histograms of seconds."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Sequence as Seq

from locallab.engine.sequence import Sequence

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds for what happens once a token: from a small model on a fast GPU to a large one on a slow CPU."""
FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
"""Bounds for what happens once a request, the time in the queue included."""


class Histogram:
    """Counts values by upper bound; the last count is of those above every bound. A value costs a bisection of a few bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Seq[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, other: Histogram) -> None:
        """Mutates: counts what the other one, of the same bounds, has counted too."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


@dataclasses.dataclass(slots=True)
class Totals:
    """Only the engine's thread changes it; another may read it at any time, each figure by itself. No figure ever falls.

    It outlives its engine: whoever keeps it still has the last figures. Tokens of prompts count with the first token of the
    answer; `time_to_first_token` runs from `Engine.submit`, `inter_token` from a token of an answer to the next.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    time_to_first_token: Histogram = dataclasses.field(default_factory=lambda: Histogram(FIRST_TOKEN_SECONDS))
    inter_token: Histogram = dataclasses.field(default_factory=lambda: Histogram(TOKEN_SECONDS))
    step: Histogram = dataclasses.field(default_factory=lambda: Histogram(TOKEN_SECONDS))

    def tokens(self, sequence: Sequence, count: int, now: float) -> None:
        """Mutates: the next `count` tokens of an answer are known at `now` (time.perf_counter), all at once."""
        self.completion_tokens += count
        if sequence.last_token is None:
            self.time_to_first_token.observe(now - sequence.submitted)
        else:
            self.inter_token.observe(now - sequence.last_token)
        sequence.last_token = now

    def add(self, other: Totals) -> None:
        """Mutates: counts what another engine has done too."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, Histogram):
                mine.add(theirs)
            else:
                setattr(self, field.name, mine + theirs)
