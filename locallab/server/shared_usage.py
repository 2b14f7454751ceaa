"""Usage that several servers add up in Redis, by way of a file of this machine while Redis is gone."""

from __future__ import annotations

import dataclasses
import functools
import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from locallab import redis_link
from locallab.server.usage import Database, Slot, Spent, UsageFile, UsageStore, add_to
from locallab.settings import ServerSettings, home

if TYPE_CHECKING:
    from redis import Redis

REMEMBERED = 30 * 86_400
"""Seconds for which Redis knows that it has a batch, which is sent again when it is not sure that it arrived."""

_NAMES = tuple(field.name for field in dataclasses.fields(Spent))[1:]

_ADD = """
local days, batches, remembered, oldest, batch, counts = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local call = redis.call
for _, day in ipairs(call('SMEMBERS', days)) do
  if day < oldest then
    local slots = days .. ':' .. day
    for _, key in ipairs(call('SMEMBERS', slots)) do call('DEL', slots .. ':' .. key) end
    call('DEL', slots)
    call('SREM', days, day)
  end
end
if counts ~= '[]' and call('SET', batches .. batch, 1, 'NX', 'EX', remembered) then
  for _, each in ipairs(cjson.decode(counts)) do
    local day, key, model, name = unpack(each, 1, 4)
    local slots = days .. ':' .. day
    call('SADD', days, day)
    call('SADD', slots, key)
    call('HSET', slots .. ':' .. key, model .. '\\nname', name)
    for index, counter in ipairs({'requests', 'prompt_tokens', 'cached_tokens', 'completion_tokens'}) do
      call('HINCRBY', slots .. ':' .. key, model .. '\\n' .. counter, each[4 + index])
    end
  end
end
"""

_OUTBOX = "CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, tried INTEGER NOT NULL, counts BLOB NOT NULL)"

log = logging.getLogger(__name__)

T = TypeVar("T")
Row = tuple[str, str, str, str, int, int, int, int]


class Batch(NamedTuple):
    """Counts that are added once, however often they are sent."""

    id: str
    counts: bytes

    @classmethod
    def of(cls, counts: Mapping[Slot, Spent]) -> Batch:
        return cls(uuid.uuid4().hex, _packed(counts))


class RedisUsage:
    """The counts in Redis: of each day and key a hash. Methods raise what `redis_link.failures` lists."""

    _days = f"{redis_link.PREFIX}:usage"

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._add = client.register_script(_ADD)

    def add(self, batch: Batch, oldest: str) -> bool:
        """Remove days before `oldest`, and add the counts of a batch that has not been added yet. Return True."""
        self._add((self._days, f"{self._days}:batch:"), (REMEMBERED, oldest, *batch))
        return True

    def read(self, since: str, key: str | None = None) -> dict[Slot, Spent]:
        """Return the counts of the days from `since` on, of one key if it is named."""
        client: Any = self._client
        days = sorted(day.decode() for day in client.smembers(self._days) if day.decode() >= since)
        slots = [(day, each) for day in days for each in self._keys(day, key)]
        with client.pipeline(transaction=False) as pipeline:
            for day, each in slots:
                pipeline.hgetall(f"{self._days}:{day}:{each}")
            hashes = pipeline.execute()
        found = [
            (Slot(day, each, model), Spent(facts["name"], *(int(facts[name]) for name in _NAMES)))
            for (day, each), fields in zip(slots, hashes, strict=True)
            for model, facts in _by_model(fields).items()
        ]
        return dict(sorted(found, key=lambda row: (row[0].day, row[1].name, row[0].model, row[0].key)))

    def _keys(self, day: str, key: str | None) -> list[str]:
        client: Any = self._client
        return [each.decode() for each in client.smembers(f"{self._days}:{day}")] if key is None else [key]


class Outbox:
    """The file of batches that Redis does not have yet, usage-unsent.db in `settings.home()`. Several processes may use it.

    Methods raise OSError and sqlite3.Error; then nothing has changed.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = home() / "usage-unsent.db" if path is None else path
        self._database = Database(self.path, _OUTBOX)

    def add(self, counts: Mapping[Slot, Spent]) -> None:
        """Add counts to a batch that nobody has tried to send, or to a new one."""

        def add(database: sqlite3.Connection) -> None:
            database.execute("BEGIN IMMEDIATE")
            row = database.execute("SELECT id, counts FROM batches WHERE NOT tried").fetchone()
            together = _unpacked(row[1]) if row else {}
            for slot, spent in counts.items():
                add_to(together, slot, spent)
            batch = Batch(row[0], _packed(together)) if row else Batch.of(together)
            database.execute("REPLACE INTO batches VALUES (?, 0, ?)", batch)

        self._database.change(add)

    def put(self, batch: Batch) -> None:
        """Keep a batch of which nobody knows whether it arrived."""
        self._database.change(lambda database: database.execute("INSERT INTO batches VALUES (?, 1, ?)", batch))

    def next(self) -> Batch | None:
        """Return a batch to send, to which nothing is added any more."""
        if not self.path.exists():
            return None

        def take(database: sqlite3.Connection) -> Batch | None:
            database.execute("BEGIN IMMEDIATE")
            row = database.execute("SELECT id, counts FROM batches ORDER BY rowid LIMIT 1").fetchone()
            if row:
                database.execute("UPDATE batches SET tried = 1 WHERE id = ?", row[:1])
            return Batch(*row) if row else None

        return self._database.change(take)

    def sent(self, batch: Batch) -> None:
        """Remove a batch that has arrived."""
        self._database.change(lambda database: database.execute("DELETE FROM batches WHERE id = ?", batch[:1]))

    def read(self) -> dict[Slot, Spent]:
        """Return the counts of all batches."""
        found: dict[Slot, Spent] = {}
        if self.path.exists():
            with self._database.open() as database:
                for (counts,) in database.execute("SELECT counts FROM batches"):
                    for slot, spent in _unpacked(counts).items():
                        add_to(found, slot, spent)
        return found


class SharedUsage:
    """Counts in Redis. While it is gone they go to the outbox, which is emptied into Redis when it is back.

    Redis adds a batch once even if it is sent again. Lost is what a killed server had in memory, up to `usage.INTERVAL`
    seconds, and what Redis itself loses. Counted twice is what Redis added without the server hearing of it, if the outbox
    could not be written at that moment.
    """

    def __init__(self, shared: RedisUsage, outbox: Outbox) -> None:
        self.path = outbox.path
        self.pending = self.path.exists()
        self._shared = shared
        self._outbox = outbox
        self._outage = redis_link.Outage("counts of usage", f"usage is kept in {self.path}")
        self._stuck = False
        self._lock = threading.Lock()

    def add(self, counts: Mapping[Slot, Spent], oldest: str) -> None:
        """Add counts, and remove days before `oldest`. Raises OSError and sqlite3.Error if they can be put nowhere."""
        with self._lock:
            if not self._outage.worth_asking():
                if counts:
                    self._outbox.add(counts)
                    self.pending = True
                return
            batch = Batch.of(counts)
            if self._ask(lambda: self._shared.add(batch, oldest)) is not None:
                self._carry_over(oldest)
            elif counts:
                self._outbox.put(batch)
                self.pending = True

    def read(self, since: str, key: str | None = None) -> dict[Slot, Spent]:
        """Return the counts of the days from `since` on, of one key if it is named: while Redis is gone, those in the outbox.

        Raises OSError and sqlite3.Error.
        """
        with self._lock:
            asks = self._outage.worth_asking()
            found = (self._ask(lambda: self._shared.read(since, key)) if asks else None) or {}
            for slot, spent in self._outbox.read().items() if self.pending else ():
                if slot.day >= since and key in (None, slot.key):
                    add_to(found, slot, spent)
        return found

    def _ask(self, call: Callable[[], T]) -> T | None:
        """Return what Redis answers; None if it fails."""
        try:
            answer = call()
        except redis_link.failures() as error:
            self._outage.failed(error)
            return None
        self._outage.over()
        return answer

    def _carry_over(self, oldest: str) -> None:
        try:
            while self.pending:
                batch = self._outbox.next()
                if batch is None:
                    self.pending = False
                elif self._ask(functools.partial(self._shared.add, batch, oldest)) is None:
                    return
                else:
                    self._outbox.sent(batch)
            self._stuck = False
        except (OSError, sqlite3.Error) as error:
            if not self._stuck:
                log.error("%s cannot be carried over to Redis: %s", self.path, error)
            self._stuck = True


def usage_store(settings: ServerSettings) -> UsageStore:
    """Return where a server adds its usage up. Raises ConfigError for an unusable address of Redis."""
    if settings.redis_url is None:
        return UsageFile()
    return SharedUsage(RedisUsage(redis_link.connect(settings.redis_url)), Outbox())


def _packed(counts: Mapping[Slot, Spent]) -> bytes:
    return msgspec.json.encode([(*slot, *dataclasses.astuple(spent)) for slot, spent in counts.items()])


def _unpacked(counts: bytes) -> dict[Slot, Spent]:
    rows: list[Row] = msgspec.json.decode(counts, type=list[Row])
    return {Slot(*row[:3]): Spent(*row[3:]) for row in rows}


def _by_model(fields: Mapping[bytes, bytes]) -> dict[str, dict[str, str]]:
    """Return the fields of each model in the hash of a day and key."""
    found: dict[str, dict[str, str]] = {}
    for field, value in fields.items():
        model, _, name = field.decode().rpartition("\n")
        found.setdefault(model, {})[name] = value.decode()
    return found
