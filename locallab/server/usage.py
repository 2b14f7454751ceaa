"""Usage: what the requests of each key took of each model, by day, in a SQLite file that outlives the server."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from locallab import private_files
from locallab.keys import Key
from locallab.settings import home

if TYPE_CHECKING:
    from locallab.engine.request import Usage  # the engine imports slowly, and a command reads the file

DAYS = 30
"""Days of a report that names none."""

INTERVAL = 0.5
"""Seconds that usage is gathered before it is written: what a crash loses at most."""

RETRY = 15.0
"""Seconds until writing is tried again, as on a full disk."""

MOST_UNWRITTEN = 10_000
"""Rows kept while they cannot be written; more are dropped."""

MOST_LABELS = 100
"""Pairs of a key and a model in the metrics; further ones are counted together."""

OTHER = ("other", "other")

_TIMEOUT = 2.0

_SCHEMA = """CREATE TABLE IF NOT EXISTS usage (
    day TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, name TEXT NOT NULL,
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, PRIMARY KEY (day, key, model)) WITHOUT ROWID"""

_ADD = """INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (day, key, model) DO UPDATE SET
    name = excluded.name, requests = requests + excluded.requests,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens, cached_tokens = cached_tokens + excluded.cached_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens"""

T = TypeVar("T")

Spend = Callable[[str, "Usage"], None]
"""Counts the usage of a model for the key of a request."""

log = logging.getLogger(__name__)


class Slot(NamedTuple):
    """What is counted together: a day in UTC, a key's id ("" is no key), a model."""

    day: str
    key: str
    model: str


@dataclasses.dataclass(frozen=True, slots=True)
class Spent:
    """Counts of one slot. `name` is the key's name when it was used last; tokens of prompts include cached ones."""

    name: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def __add__(self, later: Spent) -> Spent:
        return Spent(
            later.name,
            self.requests + later.requests,
            self.prompt_tokens + later.prompt_tokens,
            self.cached_tokens + later.cached_tokens,
            self.completion_tokens + later.completion_tokens,
        )


class UsageStore(Protocol):
    """Where a UsageLog adds its counts up; `pending` if something is left to do, for which `add` is called without counts."""

    path: Path
    pending: bool

    def add(self, counts: Mapping[Slot, Spent], oldest: str) -> None:
        """Add counts, and remove days before `oldest`. Raises OSError and sqlite3.Error; then nothing has been added."""

    def read(self, since: str, key: str | None = None) -> dict[Slot, Spent]:
        """Return the counts of the days from `since` on, of one key if it is named. Raises OSError and sqlite3.Error."""


class Database:
    """A SQLite file for its owner alone, with one table. Several processes may use it at once."""

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self._schema = schema

    def change(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Change the file in one transaction; create it first if need be. A damaged one is moved aside, which is logged.

        Raises OSError and sqlite3.Error; then nothing has changed.
        """
        private_files.make_folder(self.path.parent)
        private_files.touch(self.path)
        try:
            with self.open() as database:
                return change(database)
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # a subclass: the disk is full, or the file is locked
                raise
            aside = self.path.with_suffix(".damaged")
            os.replace(self.path, aside)
            self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
            log.error("%s is damaged (%s): moved to %s, usage is counted in a new file", self.path, error, aside)
            private_files.touch(self.path)
            with self.open() as database:
                return change(database)

    @contextlib.contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one transaction: one that is removed or replaced meanwhile costs no more than that."""
        if not self.path.is_file():
            raise sqlite3.OperationalError("it is not a regular file")
        with contextlib.closing(sqlite3.connect(self.path, timeout=_TIMEOUT)) as database, database:
            database.execute(self._schema)
            yield database


class UsageFile:
    """The file, by default usage.db in `settings.home()`. Several processes may use it at once."""

    pending = False

    def __init__(self, path: Path | None = None) -> None:
        self.path = home() / "usage.db" if path is None else path
        self._database = Database(self.path, _SCHEMA)

    def add(self, counts: Mapping[Slot, Spent], oldest: str) -> None:
        """Add counts, and remove days before `oldest`. Raises OSError and sqlite3.Error; then nothing has been added."""

        def add(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM usage WHERE day < ?", (oldest,))
            database.executemany(_ADD, ((*slot, *dataclasses.astuple(spent)) for slot, spent in counts.items()))

        self._database.change(add)

    def read(self, since: str, key: str | None = None) -> dict[Slot, Spent]:
        """Return the counts of the days from `since` on, of one key if it is named. Raises OSError and sqlite3.Error."""
        if not self.path.exists():
            return {}
        with self._database.open() as database:
            only, values = ("", (since,)) if key is None else (" AND key = ?", (since, key))
            found = database.execute(f"SELECT * FROM usage WHERE day >= ?{only} ORDER BY day, name, model", values)
            return {Slot(*row[:3]): Spent(*row[3:]) for row in found}


class UsageLog:
    """Counts usage from any thread, and writes it from a thread of its own: counting never waits for the disk.

    Counts of the last `days` days are kept; 0: none. What cannot be written is kept in memory, within bounds, and tried again.
    """

    def __init__(self, file: UsageStore, days: int) -> None:
        self.days = days
        self._file = file
        self._changed = threading.Condition()  # over everything below
        self._unwritten: dict[Slot, Spent] = {}
        self._totals: dict[tuple[str, str], Spent] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._writing = threading.Lock()
        self._failing = False
        if days and file.pending:
            self._start()

    def add(self, key: Key | None, model: str, usage: Usage) -> None:
        """Count a request that has ended, unless it ended before anything was computed."""
        if not (usage.prompt_tokens or usage.completion_tokens):
            return
        id, name = (key.id, key.name) if key else ("", "")
        spent = Spent(name, 1, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        with self._changed:
            label = (name, model) if (name, model) in self._totals or len(self._totals) < MOST_LABELS else OTHER
            add_to(self._totals, label, spent)
            if not self.days:
                return
            self._keep({Slot(first_day(1), id, model): spent})
            if self._thread is None and not self._closed:
                self._start()
            self._changed.notify()

    def totals(self) -> dict[tuple[str, str], Spent]:
        """Return the counts since the start by the name of the key ("" is no key) and the model, at most MOST_LABELS + 1."""
        with self._changed:
            return dict(self._totals)

    def report(self, days: int, key: str | None = None) -> dict[Slot, Spent]:
        """Return the counts of the last `days` days, of one key if it is named. Blocks; what cannot be read is left out."""
        since = first_day(days)
        self._flush()
        found: dict[Slot, Spent] = {}
        try:
            found = self._file.read(since, key)
        except (OSError, sqlite3.Error) as error:
            log.error("%s cannot be read: %s", self._file.path, error)
        with self._changed:
            for slot, spent in self._unwritten.items():
                if slot.day >= since and key in (None, slot.key):
                    add_to(found, slot, spent)
        return found

    def close(self) -> None:
        """Write what is not written yet. Blocks; may be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._flush()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._write, name="usage", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unwritten or self._file.pending or self._closed)
                self._changed.wait_for(lambda: self._closed, RETRY if self._failing else INTERVAL)
                if self._closed:
                    return
            self._flush()

    def _flush(self) -> None:
        with self._writing:
            with self._changed:
                counts, self._unwritten = self._unwritten, {}
            if not (counts or self._file.pending):
                return
            try:
                self._file.add(counts, first_day(self.days))
            except (OSError, sqlite3.Error) as error:
                if not self._failing:
                    log.error("%s cannot be written: %s; usage is kept in memory until it can", self._file.path, error)
                self._failing = True
                with self._changed:
                    later, self._unwritten = self._unwritten, counts
                    self._keep(later)
            else:
                self._failing = False
                with self._changed:
                    self._changed.notify()  # something may be pending now

    def _keep(self, counts: Mapping[Slot, Spent]) -> None:
        for slot, spent in counts.items():
            if slot in self._unwritten or len(self._unwritten) < MOST_UNWRITTEN:
                add_to(self._unwritten, slot, spent)


def add_to(counts: dict[Any, Spent], at: object, spent: Spent) -> None:
    """Add `spent` to the count at `at`."""
    before = counts.get(at)
    counts[at] = before + spent if before else spent


def first_day(days: int) -> str:
    """Return the first of the last `days` days, of which the last is today in UTC."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return (now - datetime.timedelta(days=days - 1)).strftime("%Y-%m-%d")
