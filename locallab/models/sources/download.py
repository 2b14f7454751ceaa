"""The download of one file from the Hub: resumes interrupted attempts, even of killed processes, and checks the digest that
the Hub announces."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import email.utils
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file of a repository at one commit. `etag` is its SHA-256, its git SHA-1, or some other value of a mirror."""

    file: str
    url: str
    size: int | None
    etag: str

    @property
    def sha256(self) -> str | None:
        return self.etag if re.fullmatch("[0-9a-f]{64}", self.etag) else None

    def digest(self) -> Any:
        """Return a new hash object whose `hexdigest` over the whole file is the etag; None if the etag is no digest."""
        if self.sha256:
            return hashlib.sha256()
        if self.size is not None and re.fullmatch("[0-9a-f]{40}", self.etag):
            return hashlib.sha1(f"blob {self.size}\0".encode())
        return None


class WrongContent(Exception):
    """The downloaded file differs from what the Hub announced; it has been discarded."""


@cache
def http_error() -> type[Exception]:
    """Return the base error class of huggingface_hub's HTTP client, which depends on its version."""
    from huggingface_hub import errors

    return next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


def patiently(what: str, call: Callable[[], Any], alive: Callable[[], None]) -> Any:
    """Return `call()`, retrying while the Hub is busy. An unreachable Hub is an error immediately."""
    from huggingface_hub import errors

    failures = 0
    while True:
        try:
            return call()
        except errors.HfHubHTTPError as error:
            failures += 1
            _pause(what, error, failures, alive)


def download(remote: Remote, path: Path, report: Callable[[int], None]) -> None:
    """Download the file to `path`, resuming from its present bytes. Blocks; calls `report` with the bytes present.

    Raises WrongContent, the HTTP client's errors, or OSError for the disk.
    """
    with _Growing.open(path, remote) as growing:
        resumed = growing.size > 0
        while True:
            _complete(remote, growing, report)
            if growing.is_right():
                return
            log.warning("%s: %s", remote.file, growing.wrong())
            reason = growing.wrong()
            growing.restart()
            if not resumed:
                path.unlink()
                raise WrongContent(reason)
            resumed = False  # the old bytes may have been damaged: start over once


def _complete(remote: Remote, growing: _Growing, report: Callable[[int], None]) -> None:
    """Send requests until the file is complete; gives up after TRIES attempts in a row without a byte."""
    failures = 0
    while not growing.is_complete():
        before = growing.size
        try:
            _receive(remote, growing, report)
            error: Exception | None = None
        except http_error() as failure:
            error = failure
        if growing.is_complete() or (error is None and remote.size is None):
            return
        failures = 1 if growing.size > before else failures + 1
        error = error or http_error()(f"the connection ended after {growing.size} of {remote.size} bytes")
        _pause(remote.file, error, failures, lambda: report(growing.size))


def _receive(remote: Remote, growing: _Growing, report: Callable[[int], None]) -> None:
    """Send one request for the missing bytes and write the response."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if growing.size:
        headers["Range"] = f"bytes={growing.size}-"
    with get_session().stream("GET", remote.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if growing.size and response.status_code != 206:
            growing.restart()  # a server without range requests
        for chunk in response.iter_bytes():
            growing.write(chunk)
            report(growing.size)
            if growing.is_complete():
                return


def _pause(what: str, error: Exception, failures: int, alive: Callable[[], None]) -> None:
    """Wait before the next attempt, or raise `error` if there is to be none."""
    response = getattr(error, "response", None)
    wanted = retry_after(response.headers, datetime.datetime.now(datetime.timezone.utc)) if response is not None else None
    seconds = delay(failures, response.status_code if response is not None else None, wanted)
    if seconds is None:
        raise error
    reason = f"HTTP {response.status_code}" if response is not None else str(error) or type(error).__name__
    log.warning("%s: %s; trying again in %.0f s (%d of %d)", what, reason, seconds, failures, TRIES)
    wait(seconds, alive)


class _Growing:
    """A partial file and the digest of its bytes."""

    def __init__(self, file: Any, remote: Remote) -> None:
        self._file = file
        self._remote = remote
        self._digest = remote.digest()
        self.size = 0

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, remote: Remote) -> Iterator[_Growing]:
        with path.open("ab", buffering=0) as file:  # unbuffered: the bytes survive a killed process
            growing = cls(file, remote)
            if path.is_file():
                growing.read(path)
            yield growing

    def read(self, path: Path) -> None:
        """Count the bytes that are present already."""
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                self._count(chunk)

    def write(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            left = left[self._file.write(left) :]
        self._count(chunk)

    def restart(self) -> None:
        """Discard the bytes."""
        self._file.truncate(0)
        self.size = 0
        self._digest = self._remote.digest()

    def is_complete(self) -> bool:
        """Return whether all announced bytes are present; too many count as complete, and fail `is_right`."""
        return self._remote.size is not None and self.size >= self._remote.size

    def is_right(self) -> bool:
        whole = self._remote.size is None or self.size == self._remote.size
        return whole and (self._digest is None or self._digest.hexdigest() == self._remote.etag)

    def wrong(self) -> str:
        if self._remote.size is not None and self.size != self._remote.size:
            return f"expected {self._remote.size} bytes, got {self.size}"
        return f"expected {self._digest.name} {self._remote.etag}, got {self._digest.hexdigest()}"

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self._digest is not None:
            self._digest.update(chunk)


TRIES = 5
"""Retries in a row without a byte received."""

LONGEST = 300.0
"""Longest wait, in seconds, that the Hub may request; its rate limits have windows of this length."""

LOOK = 0.5
"""Seconds between two calls of `alive` during a wait."""

STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


def delay(failures: int, status: int | None, asked: float | None) -> float | None:
    """Return the seconds to wait after this many failures in a row, None to give up.

    `status` is None for a broken connection; `asked` is the wait requested by the response.
    """
    if failures > TRIES or (status is not None and status not in STATUSES):
        return None
    if asked is not None:
        return asked if asked <= LONGEST else None
    return float(2 ** (failures - 1))


def retry_after(headers: Mapping[str, str], now: datetime.datetime) -> float | None:
    """Return the wait in seconds that a response requests, by Retry-After in either form, else by its rate limit's window."""
    after = headers.get("retry-after", "").strip()
    if after.isdigit():
        return float(after)
    if after:
        try:
            return max(0.0, (email.utils.parsedate_to_datetime(after) - now).total_seconds())
        except (TypeError, ValueError):
            return None
    window = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("ratelimit", ""))
    return float(window[1]) if window else None


def wait(seconds: float, alive: Callable[[], None]) -> None:
    """Wait, calling `alive` regularly, which may raise to end the wait."""
    left = seconds
    while left > 0:
        alive()
        pause(min(LOOK, left))
        left -= LOOK


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)
