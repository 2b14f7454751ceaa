"""One file of the Hub onto the disk: goes on where an earlier attempt stopped, in this process or a killed one, and checks
what came against the digest that the Hub gives."""

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
    """A file of a repository at one commit. `etag` is its SHA-256, or git's SHA-1 of it, or something of a mirror's own."""

    file: str
    url: str
    size: int | None
    etag: str

    @property
    def sha256(self) -> str | None:
        return self.etag if re.fullmatch("[0-9a-f]{64}", self.etag) else None

    def digest(self) -> Any:
        """What the whole file must be fed to for `hexdigest` to give its etag; None if that cannot be checked."""
        if self.sha256:
            return hashlib.sha256()
        if self.size is not None and re.fullmatch("[0-9a-f]{40}", self.etag):
            return hashlib.sha1(f"blob {self.size}\0".encode())
        return None


class WrongContent(Exception):
    """What came is not what the Hub said it would send; it was thrown away."""


@cache
def http_error() -> type[Exception]:
    """What the HTTP client of the installed huggingface_hub raises, which differs from version to version."""
    from huggingface_hub import errors

    return next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


def patiently(what: str, call: Callable[[], Any], alive: Callable[[], None]) -> Any:
    """`call()`, called again after a while when the Hub is busy. A Hub that cannot be reached at all is told at once."""
    from huggingface_hub import errors

    failures = 0
    while True:
        try:
            return call()
        except errors.HfHubHTTPError as error:
            failures += 1
            _pause(what, error, failures, alive)


def download(remote: Remote, path: Path, report: Callable[[int], None]) -> None:
    """Fetches the file to `path`, beginning with what is there. Blocks; tells `report` how many bytes are there.

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
            resumed = False  # what lay there may have been damaged: once more from the beginning


def _complete(remote: Remote, growing: _Growing, report: Callable[[int], None]) -> None:
    """Asks until all has come, as long as each few attempts bring something."""
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
        _pause(remote.file, error or _broken(remote, growing), failures, lambda: report(growing.size))


def _receive(remote: Remote, growing: _Growing, report: Callable[[int], None]) -> None:
    """Sends one request for what is missing, and keeps what comes of it."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if growing.size:
        headers["Range"] = f"bytes={growing.size}-"
    with get_session().stream("GET", remote.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if growing.size and response.status_code != 206:
            growing.restart()  # a server that knows no ranges
        for chunk in response.iter_bytes():
            growing.write(chunk)
            report(growing.size)
            if growing.is_complete():
                return


def _pause(what: str, error: Exception, failures: int, alive: Callable[[], None]) -> None:
    """Waits before the next attempt, or raises `error` when there shall be none."""
    response = getattr(error, "response", None)
    wanted = retry_after(response.headers, datetime.datetime.now(datetime.timezone.utc)) if response is not None else None
    seconds = delay(failures, response.status_code if response is not None else None, wanted)
    if seconds is None:
        raise error
    reason = f"HTTP {response.status_code}" if response is not None else str(error) or type(error).__name__
    log.warning("%s: %s; trying again in %.0f s (%d of %d)", what, reason, seconds, failures, TRIES)
    wait(seconds, alive)


def _broken(remote: Remote, growing: _Growing) -> Exception:
    return http_error()(f"the connection ended after {growing.size} of {remote.size} bytes")


class _Growing:
    """A half-fetched file, and the digest of what it holds."""

    def __init__(self, file: Any, remote: Remote) -> None:
        self._file = file
        self._remote = remote
        self._digest = remote.digest()
        self.size = 0

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, remote: Remote) -> Iterator[_Growing]:
        with path.open("ab", buffering=0) as file:  # unbuffered: what came outlives a process that is killed
            growing = cls(file, remote)
            if path.is_file():
                growing.read(path)
            yield growing

    def read(self, path: Path) -> None:
        """Counts what is there already."""
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                self._count(chunk)

    def write(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            left = left[self._file.write(left) :]
        self._count(chunk)

    def restart(self) -> None:
        """Throws away what is there."""
        self._file.truncate(0)
        self.size = 0
        self._digest = self._remote.digest()

    def is_complete(self) -> bool:
        """Whether nothing more is to come; more than was announced is wrong, but complete."""
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
"""Times in a row that a request may be sent again without a byte having come."""

LONGEST = 300.0
"""The longest time, in seconds, that the Hub may ask us to wait; its rate limits count in windows of this length."""

LOOK = 0.5  # seconds between two calls of what may end the wait
STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


def delay(failures: int, status: int | None, asked: float | None) -> float | None:
    """Seconds to wait after this many failures in a row, None to give up.

    `status` None is a connection that broke; `asked` is what the answer asks for.
    """
    if failures > TRIES or (status is not None and status not in STATUSES):
        return None
    if asked is not None:
        return asked if asked <= LONGEST else None
    return float(2 ** (failures - 1))


def retry_after(headers: Mapping[str, str], now: datetime.datetime) -> float | None:
    """Seconds that an answer asks to wait: its Retry-After, in either form, or else the window of its rate limit."""
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
    """Waits; calls `alive` all the while, which may raise to end it."""
    left = seconds
    while left > 0:
        alive()
        pause(min(LOOK, left))
        left -= LOOK


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)
