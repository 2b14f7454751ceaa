"""What went through the tunnel this month, against what ngrok's free plan allows. One file for all servers of the user."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from locallab.settings import home
from locallab.tunnel.facts import FreePlan, MonthFacts

FREE_REQUESTS = 20_000
FREE_BYTES = 10**9
"""Of ngrok's free plan, each calendar month; only what goes out counts."""


class Month(msgspec.Struct, frozen=True):
    """Requests, and the bytes of their answers and of themselves, headers included and TLS not."""

    month: str
    requests: int = 0
    bytes_out: int = 0
    bytes_in: int = 0

    def plus(self, other: Month) -> Month:
        """Both together, in the later month: an earlier one is over."""
        if self.month != other.month:
            return max(self, other, key=lambda each: each.month)
        return Month(
            self.month,
            self.requests + other.requests,
            self.bytes_out + other.bytes_out,
            self.bytes_in + other.bytes_in,
        )

    @property
    def used(self) -> float:
        """The part of the free plan that is gone, whichever of its two limits is nearer: 1 is all of it."""
        return max(self.requests / FREE_REQUESTS, self.bytes_out / FREE_BYTES)


def this_month() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m")


class Usage:
    """Counts in memory, from any thread; `save` adds that to the file. A file that cannot be read counts as none."""

    def __init__(self, path: Path | None = None, month: Callable[[], str] = this_month) -> None:
        self._path = path or home() / "tunnel.json"
        self._month = month
        self._lock = threading.Lock()
        self._saved = self._read()
        self._new = Month(month())

    def add(self, requests: int = 0, bytes_out: int = 0, bytes_in: int = 0) -> None:
        with self._lock:
            self._new = self._new.plus(Month(self._month(), requests, bytes_out, bytes_in))

    def now(self) -> Month:
        """This month so far, with what other servers have saved."""
        with self._lock:
            return Month(self._month()).plus(self._saved).plus(self._new)

    def save(self) -> None:
        """Adds what is new to the file. Raises OSError; then nothing is lost, and the next time it is tried again."""
        with self._lock:
            if self._new == Month(self._new.month):
                return
            with self._locked():
                total = self._read().plus(self._new)
                part = self._path.with_suffix(".part")
                part.write_bytes(msgspec.json.encode(total))
                os.replace(part, self._path)
            self._saved, self._new = total, Month(self._new.month)

    def facts(self) -> MonthFacts:
        now = self.now()
        plan = FreePlan(FREE_REQUESTS, FREE_BYTES)
        return MonthFacts(now.month, now.requests, now.bytes_out, now.bytes_in, plan, round(now.used, 4))

    def _read(self) -> Month:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Month)
        except (OSError, msgspec.DecodeError):
            return Month("")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Against other servers."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path.with_suffix(".lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
