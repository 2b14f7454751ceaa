"""The tunnel's traffic this month, by ngrok against the limits of its free plan. One file of a provider for all servers of the
user."""

from __future__ import annotations

import datetime
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from locallab import private_files
from locallab.settings import Provider, home
from locallab.tunnel.facts import FreePlan, MonthFacts

FREE_REQUESTS = 20_000
FREE_BYTES = 10**9
"""Limits of ngrok's free plan per calendar month; only outgoing bytes count."""


class Month(msgspec.Struct, frozen=True):
    """Requests, and the bytes of responses (out) and requests (in), with headers, without TLS."""

    month: str
    requests: int = 0
    bytes_out: int = 0
    bytes_in: int = 0

    def plus(self, other: Month) -> Month:
        """Return the sum if the months are the same, else the later month alone."""
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
        """The used fraction of the free plan, by the nearer of its two limits; 1 is all of it."""
        return max(self.requests / FREE_REQUESTS, self.bytes_out / FREE_BYTES)


def this_month() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m")


class Usage:
    """Counters in memory, for any thread; `save` adds them to the file. An unreadable file counts as missing."""

    def __init__(self, path: Path | None = None, month: Callable[[], str] = this_month, provider: Provider = "ngrok") -> None:
        """Of another provider than ngrok, the file is another one, and there is no free plan with limits."""
        self._path = path or home() / ("tunnel.json" if provider == "ngrok" else f"tunnel-{provider}.json")
        self._plan = FreePlan(FREE_REQUESTS, FREE_BYTES) if provider == "ngrok" else None
        self._month = month
        self._lock = threading.Lock()
        self._saved = self._read()
        self._new = Month(month())

    def add(self, requests: int = 0, bytes_out: int = 0, bytes_in: int = 0) -> None:
        with self._lock:
            self._new = self._new.plus(Month(self._month(), requests, bytes_out, bytes_in))

    def now(self) -> Month:
        """Return this month so far, including the saved traffic of other servers."""
        with self._lock:
            return Month(self._month()).plus(self._saved).plus(self._new)

    def save(self) -> None:
        """Add the new counts to the file. Raises OSError; the counts are then kept for the next attempt."""
        with self._lock:
            if self._new == Month(self._new.month):
                return
            private_files.make_folder(self._path.parent)
            with open(self._path.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # against other servers
                total = self._read().plus(self._new)
                part = self._path.with_suffix(".part")
                part.write_bytes(msgspec.json.encode(total))
                os.replace(part, self._path)
            self._saved, self._new = total, Month(self._new.month)

    def facts(self) -> MonthFacts:
        now, plan = self.now(), self._plan
        return MonthFacts(now.month, now.requests, now.bytes_out, now.bytes_in, plan, round(now.used, 4) if plan else None)

    def _read(self) -> Month:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Month)
        except (OSError, msgspec.DecodeError):
            return Month("")
