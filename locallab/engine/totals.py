"""Totals of an engine since it was loaded: exact counts, and histograms of seconds."""

from __future__ import annotations

import dataclasses
import time
from bisect import bisect_left
from collections.abc import Sequence as Seq
from typing import Literal, get_args

from locallab.engine.request import CacheUse, EngineStats, MissReason, Tier
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import Sequence

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds for durations per token: from a small model on a fast GPU to a large one on a slow CPU."""
FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
"""Bounds for durations per request, the time in the queue included."""


Phase = Literal["plan", "fill", "post", "decode", "sample"]
"""Parts of a step: what to compute, moving states; filling the batch; handing out events; llama.cpp; the next tokens."""

TIERS: tuple[Tier, ...] = ("resident", "host", "disk")
"""Where the prefix cache keeps what it has."""


class Histogram:
    """Counts of values per upper bound, with a last count for values above every bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Seq[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, other: Histogram) -> None:
        """Add the counts of another histogram with the same bounds."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


@dataclasses.dataclass(slots=True)
class Totals:
    """Counters of one engine. Only its thread changes them; others may read each figure at any time. No figure ever falls.

    They outlive the engine. The tokens of a prompt count with the first token of the answer. `time_to_first_token` runs from
    `TextEngine.submit`, `inter_token` from one token of an answer to the next, `step` is the duration of a step.
    `accepted_tokens` and `rejected_tokens` are those of drafts.
    `cache_requests` counts prompts by the reason why the prefix cache had no more of them, `missed_tokens` the tokens that it
    did not have, and `hit_tokens` those that it had, by where they were. `phases` has the seconds of all steps, by part.
    `adapter_tokens` are tokens of answers by the name of each adapter that they were computed with, and `adapter_switches` the
    times that one batch had other adapters than the one before. All
    keys are there from the start.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    adapter_switches: int = 0
    adapter_tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    cache_requests: dict[MissReason, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(get_args(MissReason), 0))
    missed_tokens: dict[MissReason, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(get_args(MissReason), 0))
    hit_tokens: dict[Tier, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(TIERS, 0))
    time_to_first_token: Histogram = dataclasses.field(default_factory=lambda: Histogram(FIRST_TOKEN_SECONDS))
    inter_token: Histogram = dataclasses.field(default_factory=lambda: Histogram(TOKEN_SECONDS))
    step: Histogram = dataclasses.field(default_factory=lambda: Histogram(TOKEN_SECONDS))
    phases: dict[Phase, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(get_args(Phase), 0.0))

    def lap(self, phase: Phase, began: float) -> float:
        """Count the time since `began` (time.perf_counter) as part of a phase; return the time now."""
        now = time.perf_counter()
        self.phases[phase] += now - began
        return now

    def prompt(self, length: int, use: CacheUse | None) -> None:
        """Count a prompt and, unless it was computed as a whole on purpose, its use of the prefix cache."""
        self.prompt_tokens += length
        if use is None:
            return
        self.cached_tokens += use.hit
        self.cache_requests[use.reason] += 1
        self.missed_tokens[use.reason] += use.total - use.hit
        if use.tier != "none":
            self.hit_tokens[use.tier] += use.hit

    def stats(self, scheduler: Scheduler) -> EngineStats:
        """Return these and what the scheduler has now. For other threads: it counts nothing that the engine counts."""
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_used=scheduler.cache.used,
            kv_total=scheduler.limits.cells,
            cached=scheduler.cache.counted_cold if scheduler.running else scheduler.cache.used,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            preemptions=self.preemptions,
            steps=self.steps,
            stored_bytes=scheduler.cache.size,
            stored_limit=scheduler.cache.capacity,
        )

    def drafts(self, accepted: int, rejected: int) -> None:
        """Count the tokens of a verified draft."""
        self.accepted_tokens += accepted
        self.rejected_tokens += rejected

    def tokens(self, sequence: Sequence, count: int, now: float) -> None:
        """Count the next `count` tokens of an answer, all known at `now` (time.perf_counter)."""
        self.completion_tokens += count
        for name in sequence.adapters.names:
            self.adapter_tokens[name] += count
        if sequence.last_token is None:
            sequence.first_token = now
            self.time_to_first_token.observe(now - sequence.submitted)
        else:
            self.inter_token.observe(now - sequence.last_token)
            sequence.heard((now - sequence.last_token) / count)
        sequence.last_token = now

    def add(self, other: Totals) -> None:
        """Add the figures of another engine."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, Histogram):
                mine.add(theirs)
            elif isinstance(mine, dict):
                mine.update({key: mine.get(key, 0) + count for key, count in theirs.items()})
            else:
                setattr(self, field.name, mine + theirs)
