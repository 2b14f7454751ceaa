"""Tells how far a download is: a bar with speed and time left on a terminal, now and then a log line elsewhere."""

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
"""Seconds between two log lines."""

WINDOW = 60.0
"""The seconds over which the speed is taken."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def progress(spec: ModelSpec) -> Iterator[Progress]:
    """A Progress for fetching `spec`. It shows nothing until it is called: most of the time there is nothing to fetch."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _Lines(spec.id)
        return
    bar = _Bar(spec.id)
    try:
        yield bar
    finally:
        bar.stop()


class Pace:
    """How fast bytes come, from how many were there when. Pure: the clock is the caller's."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def add(self, now: float, done: int) -> None:
        """`done` bytes are here at `now`. Fewer than before means that some were thrown away: the count begins anew."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= self._window:
            self._seen.popleft()

    @property
    def speed(self) -> float | None:
        """Bytes a second over the window; what was there at the beginning does not count. None while nothing came."""
        if len(self._seen) < 2:
            return None
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began) if last > first and now > began else None

    def left(self, total: int | None) -> float | None:
        """Seconds until all is here, None if nobody can say."""
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
        if complete or now >= self._due:
            self._pace.add(now, done)
            log.info("fetching %s: %s", self._name, self._text(done, total))
            self._due = now + EVERY
            self._last = done

    def _text(self, done: int, total: int | None) -> str:
        said = [decimal_bytes(done) + (f" of {decimal_bytes(total)}" if total is not None else "")]
        if self._pace.speed is not None:
            said.append(f"{decimal_bytes(round(self._pace.speed))}/s")
        left = self._pace.left(total)
        if left:
            said.append(f"{duration(left)} left")
        return ", ".join(said)


class _Bar:
    def __init__(self, name: str) -> None:
        self._name = name
        self._bars: Bars | None = None

    def __call__(self, done: int, total: int | None) -> None:
        if self._bars is None:
            self._bars = _bars()
            # What an earlier fetch left is there from the beginning: it is no part of the speed.
            self._task = self._bars.add_task(self._name, completed=done, total=total)
            self._bars.start()
        self._bars.update(self._task, completed=done, total=total)
        if done == total:
            self._bars.stop()  # before the model loads, whose log lines would cross it

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
