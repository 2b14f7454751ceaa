"""Download progress: a bar with speed and time left on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from locallab.models import ModelSpec, Progress
from locallab.units import decimal_bytes, duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

EVERY = 10.0
"""Seconds between log lines."""

WINDOW = 60.0
"""Seconds over which the speed is measured."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def progress(spec: ModelSpec) -> Iterator[Progress]:
    """Yield a Progress for fetching `spec`. It shows nothing until it is called, as most models are on disk already."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _Lines(spec.id)
        return
    bar = _Bar(spec.id)
    try:
        yield bar
    finally:
        bar.stop()


class Pace:
    """Speed of a download over a window of time. Pure: the caller passes the clock."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def add(self, now: float, done: int) -> None:
        """Record `done` bytes at `now`. Fewer than before means that some were discarded, and restarts the measurement."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= self._window:
            self._seen.popleft()

    @property
    def speed(self) -> float | None:
        """Bytes per second over the window, without those present at its start; None until bytes arrive."""
        if len(self._seen) < 2:
            return None
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began) if last > first and now > began else None

    def left(self, total: int | None) -> float | None:
        """Return the seconds until `total` bytes are here, or None if unknown."""
        return (total - self._seen[-1][1]) / self.speed if total is not None and self.speed is not None else None


class _Lines:
    def __init__(self, name: str) -> None:
        self._name = name
        self._due = 0.0
        self._last = -1
        self._pace = Pace()

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        complete = done == total and done != self._last
        if not complete and now < self._due:
            return
        self._pace.add(now, done)
        parts = [decimal_bytes(done) + (f" of {decimal_bytes(total)}" if total is not None else "")]
        if self._pace.speed is not None:
            parts.append(f"{decimal_bytes(round(self._pace.speed))}/s")
        if left := self._pace.left(total):
            parts.append(f"{duration(left)} left")
        log.info("fetching %s: %s", self._name, ", ".join(parts))
        self._due, self._last = now + EVERY, done


class _Bar:
    def __init__(self, name: str) -> None:
        self._name = name
        self._bars: Bars | None = None

    def __call__(self, done: int, total: int | None) -> None:
        if self._bars is None:
            self._bars = _bars()
            # Bytes of an earlier fetch are complete from the start: they must not count as speed.
            self._task = self._bars.add_task(self._name, completed=done, total=total)
            self._bars.start()
        self._bars.update(self._task, completed=done, total=total)
        if done == total:
            self._bars.stop()  # before the model loads, whose log lines would overwrite it

    def stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()


def _bars() -> Bars:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=Console(stderr=True))
