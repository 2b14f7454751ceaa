"""Tells how far a download is: a bar on a terminal, now and then a log line elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from locallab.models import ModelSpec, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

EVERY = 10.0
"""Seconds between two log lines."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def progress(spec: ModelSpec) -> Iterator[Progress]:
    """A Progress for fetching `spec`. It shows nothing until it is called: most of the time there is nothing to fetch."""
    if not sys.stderr.isatty():
        yield _Lines(spec.id)
        return
    bar = _Bar(spec.id)
    try:
        yield bar
    finally:
        bar.stop()


class _Lines:
    def __init__(self, name: str) -> None:
        self._name = name
        self._due = 0.0
        self._last = -1

    def __call__(self, done: int, total: int | None) -> None:
        complete = done == total and done != self._last
        if complete or time.monotonic() >= self._due:
            log.info("fetching %s: %d MB%s", self._name, done // 10**6, f" of {total // 10**6}" if total else "")
            self._due = time.monotonic() + EVERY
            self._last = done


class _Bar:
    def __init__(self, name: str) -> None:
        self._name = name
        self._bars: Bars | None = None

    def __call__(self, done: int, total: int | None) -> None:
        if self._bars is None:
            self._bars = _bars()
            self._task = self._bars.add_task(self._name)
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
