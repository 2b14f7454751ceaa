"""States of prefixes on disk, up to a configured size, which outlive the process. Knows tokens and bytes only."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import itertools
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from locallab import cache_files
from locallab.cache_files import Entry
from locallab.engine.record import Record

T = TypeVar("T")
Bytes = npt.NDArray[np.uint8]
Tokens = Sequence[int] | npt.NDArray[np.int32]
Payload = tuple[Bytes | None, Bytes | None]
"""The rows of a record's tokens from `start` on, (tokens, bytes each), and the fixed part at its end. None: left out."""

NICENESS = 5
"""Of the thread that writes. At 19 it waits for a processor while it holds the GIL, and with it the engine, for 250 ms."""

WAITING = 256 << 20
"""Bytes that may wait to be written; they take RAM beside the cache's own."""

PAUSE = 60.0
"""Seconds without writes after a failed one: it may have filled the disk for everybody."""

EDGE = 1 << 20

log = logging.getLogger(__name__)


class DiskCache:
    """The files of one fingerprint, a folder for each owner, in a directory that several caches and processes may share.

    Files are read in one thread and written in another, which call `done` and `evicted`; a read never waits for a write. A
    file that cannot be used counts as absent. `capacity` bounds the bytes of all files in the directory, whose least recently
    used go first, but none that a more recently used one continues.
    """

    def __init__(self, directory: Path, capacity: int, fingerprint: str) -> None:
        """Make the directory. If it cannot be used, that is logged and nothing is kept. `fingerprint` is of `cache_files`."""
        self.capacity = capacity
        self.evicted: Callable[[Record], None] = lambda record: None
        self._directory = directory
        self._fingerprint = fingerprint
        self._known: dict[Path, Record] = {}
        self._lock = threading.Lock()
        self._waiting = 0
        self._failed = False
        self._resume = 0.0
        self._closed = False
        self._reads = ThreadPoolExecutor(1, "read cache")
        self._writes = ThreadPoolExecutor(1, "write cache", initializer=_lower_priority)
        try:
            cache_files.open_directory(directory)
        except OSError as error:
            self._fail(error)
            self._resume = math.inf

    def records(self) -> list[Record]:
        """Return what is on disk, least recently used first, after removing what is damaged or exceeds the capacity."""
        for folder in cache_files.folders(self._directory):
            cache_files.sweep(folder)
        try:
            self._remove(excess(cache_files.entries(self._directory), self.capacity))
        except OSError as error:
            self._fail(error)
        owners = cache_files.owners(self._directory, self._fingerprint)
        mine = [entry for entry in cache_files.entries(self._directory) if entry.path.parent in owners]
        found = (
            _attempt(entry.path, functools.partial(_record, entry, owners[entry.path.parent]))
            for entry in cache_files.by_use(mine)
        )
        self._known = {record.path: record for record in found if record}
        return list(self._known.values())

    def write(
        self,
        tokens: Tokens,
        start: int,
        rows: Bytes | None,
        fixed: Bytes | None,
        done: Callable[[Record | None], None],
        owner: str = "",
    ) -> None:
        """Write a record with rows, a fixed part or both in the background; the arrays must not change meanwhile.

        `done` gets None for one that is dropped: when it does not fit beside what it continues, after a failure, and, at once
        in this thread, when too many bytes wait already.
        """
        size = sum(part.nbytes for part in (rows, fixed) if part is not None)
        ids = np.array(tokens, np.int32)

        def work() -> Record | None:
            try:
                return self._write(ids, start, rows, fixed, owner)
            finally:
                with self._lock:
                    self._waiting -= size

        with self._lock:
            dropped = (self._waiting and self._waiting + size > WAITING) or time.monotonic() < self._resume
            self._waiting += 0 if dropped else size
        if dropped:
            done(None)
        else:
            self._submit(self._writes, work, done)

    def read(self, record: Record, done: Callable[[Payload | None], None]) -> None:
        """Read a record in the background, and call `done` with its payload, or with None when it is gone or damaged."""

        def work() -> Payload | None:
            payload = _attempt(record.path, lambda: _payload(record))
            if payload is None:
                self._known.pop(record.path, None)
            return payload

        self._submit(self._reads, work, done)

    def touch(self, record: Record) -> None:
        """Mark a record, and with it what it continues, as the most recently used, for later processes too."""

        def work() -> None:
            with contextlib.suppress(OSError):
                os.utime(record.path)

        self._submit(self._writes, work, lambda nothing: None)

    def close(self) -> None:
        """Finish the read and the write at hand, drop those that wait without calling `done`, and end the threads."""
        with self._lock:
            self._closed = True
        for threads in (self._reads, self._writes):
            threads.shutdown(cancel_futures=True)

    def _submit(self, threads: Executor, work: Callable[[], T | None], done: Callable[[T | None], None]) -> None:
        """Let a thread work and call `done` with the result: with None after a failure. After `close`, call it here."""

        def run() -> None:
            result = None
            try:
                result = work()
            except FileNotFoundError:  # another process cleared the directory meanwhile
                pass
            except OSError as error:
                self._fail(error)
            except Exception:
                log.exception("the prefix cache on disk failed; answers go on without it")
            done(result)

        with self._lock:
            closed = self._closed
            if not closed:
                threads.submit(run)
        if closed:
            done(None)

    def _write(
        self, tokens: npt.NDArray[np.int32], start: int, rows: Bytes | None, fixed: Bytes | None, owner: str
    ) -> Record | None:
        """Write a record, in the thread that writes, after making room. Raises OSError."""
        if time.monotonic() < self._resume:  # it was waiting when another one failed
            return None
        views = [None if part is None else np.ascontiguousarray(part).data for part in (rows, fixed)]
        payload = sum(view.nbytes for view in views if view is not None)
        folder = self._directory / cache_files.folder_name(self._fingerprint, owner)
        path = folder / cache_files.file_name(tokens.data, start, rows is not None, fixed is not None)
        new = Entry.named(path, cache_files.reserved(len(tokens), payload), time.time_ns())
        assert new is not None, path
        others = (entry for entry in cache_files.entries(self._directory) if entry.path != path)
        going = excess([*others, new], self.capacity)
        if new in going:
            return None
        self._remove(going)
        cache_files.make_folder(folder, self._fingerprint, owner)
        size = cache_files.write(path, tokens.data, start, *views)
        self._failed = False
        record = Record(tokens, start, rows is not None, 0 if fixed is None else fixed.nbytes, size, path, owner)
        self._known[path] = record
        return record

    def _remove(self, entries: Iterable[Entry]) -> None:
        """Remove files. Raises OSError."""
        for entry in entries:
            entry.path.unlink(missing_ok=True)
            if record := self._known.pop(entry.path, None):
                self.evicted(record)

    def _fail(self, error: OSError) -> None:
        """Stop writing for a while. Only the first of several failures is logged."""
        self._resume = time.monotonic() + PAUSE
        if not self._failed:
            log.warning("%s: the prefix cache on disk cannot be written: %s", self._directory, error.strerror or error)
        self._failed = True


def excess(entries: Iterable[Entry], capacity: int) -> list[Entry]:
    """Return the entries to remove, least recently used first, so that the others have at most `capacity` bytes."""
    order = cache_files.by_use(entries)
    size = sum(entry.size for entry in order)
    freed = itertools.accumulate((entry.size for entry in order), initial=0)
    return [entry for entry, before in zip(order, freed, strict=False) if size - before > capacity]


def model_digest(path: Path, known: str | None = None) -> str:
    """Return a digest of a model's weights: the `known` SHA-256 of the file, if any, else one that takes milliseconds.

    To read all of a large file would take as long as loading it. The cheap one covers sizes and times of change of all shards,
    and the first and the last MiB of each: header, vocabulary and last tensors. Another model differs there, and a file that
    is changed elsewhere has another time of change. A copy that does not keep the time is taken for another model, which costs
    a computed prompt and never gives a wrong one.
    """
    if known:
        return known
    shards = sorted(path.parent.glob(re.sub(r"-\d{5}-of-", "-?????-of-", glob.escape(path.name))))
    total = hashlib.sha256()
    for shard in shards:
        with shard.open("rb") as file:
            stat = os.fstat(file.fileno())
            total.update(f"{stat.st_size} {stat.st_mtime_ns} ".encode())
            total.update(file.read(EDGE))
            file.seek(max(0, stat.st_size - EDGE))
            total.update(file.read(EDGE))
    return total.hexdigest()


def _record(entry: Entry, owner: str) -> Record:
    header, tokens = cache_files.read_head(entry.path)
    ids = np.frombuffer(tokens, np.int32)
    return Record(ids, header.start, header.rows is not None, header.fixed or 0, entry.size, entry.path, owner)


def _payload(record: Record) -> Payload:
    header, _, rows, fixed = cache_files.read(record.path)
    shape = header.end - header.start, header.rows or 0
    return (
        None if rows is None else np.frombuffer(rows, np.uint8).reshape(shape),
        None if fixed is None else np.frombuffer(fixed, np.uint8),
    )


def _attempt(path: Path, use: Callable[[], T]) -> T | None:
    """Return what `use` makes of a file; None if it is gone, unreadable, or damaged: then it is removed."""
    try:
        return use()
    except FileNotFoundError:  # another process removed it
        return None
    except cache_files.Damaged as error:
        log.warning("removed from the prefix cache: %s", error)
        with contextlib.suppress(OSError):
            path.unlink()
    except (OSError, MemoryError) as error:
        log.warning("the prefix cache cannot use %s: %s", path, error)
    return None


def _lower_priority() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
