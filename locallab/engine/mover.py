"""Carries out the moves of a plan: what changes sequences without computing, and the traffic with host RAM and disk."""

from __future__ import annotations

import dataclasses
import functools
import logging
import queue
import time
from typing import Any

import numpy as np

from locallab.engine.context import Context
from locallab.engine.disk_cache import DiskCache, Payload
from locallab.engine.prefix_tree import NOTHING
from locallab.engine.record import Record
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import UNPLACED, Sequence
from locallab.engine.state_format import Bytes, Rows, UnknownFormat
from locallab.engine.step_plan import Copy, Fetch, Move, Relocate, Remove, Restore, Save
from locallab.errors import EngineFailure

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """A prefix is on disk."""

    record: Record


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """The content of a record, None if it could not be read. `sequence` waits for it, if it is the last of several."""

    record: Record
    payload: Payload | None
    sequence: Sequence | None


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """A prefix is no longer on disk."""

    record: Record


Result = Written | Fetched | Lost


class Mover:
    """Works in the engine's thread, for one worker. What the disk's threads report goes to `results`, for `take`."""

    def __init__(self, context: Context, scheduler: Scheduler, results: queue.SimpleQueue[Any], disk: DiskCache | None) -> None:
        self._context = context
        self._scheduler = scheduler
        self._results = results
        self._disk = disk
        self._at_start: list[Record] = []
        if disk is not None:
            disk.evicted = lambda record: results.put(Lost(record))
            self._at_start = disk.records()
            for record in self._at_start:
                scheduler.cache.recorded(record)

    def carry_out(self, move: Move) -> None:
        match move:
            case Copy(source, target, start, end):
                self._context.remove(target, start, end)
                self._context.copy(source, target, start, end)
            case Remove(slot, start):
                self._remove(slot, start)
            case Save():
                self.save(move)
            case Restore():
                self._restore(move)
            case Relocate(sequence, source):
                self._relocate(sequence, source)
            case Fetch(sequence, end):
                self._fetch(sequence, end)

    def _remove(self, slot: int, start: int) -> None:
        try:
            self._context.remove(slot, start)
        except EngineFailure as error:
            if not start:
                raise
            logger.warning("%s; it is computed again", error)
            self._context.remove(slot)
            for sequence in [s for s in self._scheduler.running if s.slot == slot]:
                self._scheduler.unrestored(sequence, 0)

    def share(self, prompts: tuple[list[int], ...]) -> None:
        """Let all owners have what begins one of these prompts. Only before the first request."""
        cache = self._scheduler.cache
        for record in self._at_start:
            cache.lost(record)
        cache.public = prompts
        for record in self._at_start:
            cache.recorded(record)

    def save(self, save: Save) -> None:
        """Keep a sequence's state; one that cannot be saved is computed again when it is wanted."""
        cache, slot, tokens, owner = self._scheduler.cache, save.slot, save.tokens, save.owner
        if not cache.unsaved(tokens, owner):
            return
        start = cache.stored(tokens, owner)
        began = time.perf_counter()
        try:
            rows, fixed = self._context.save(slot, start, len(tokens))
        except Exception as error:
            unexpected = None if isinstance(error, (EngineFailure, UnknownFormat)) else error
            logger.warning("a prefix of %d tokens could not be saved: %s", len(tokens), error, exc_info=unexpected)
            self._scheduler.unsaved(slot)
            return
        cache.store(tokens, start, rows, fixed, owner)
        self._scheduler.costs.observe_move(len(tokens), time.perf_counter() - began)
        if cache.unsaved(tokens, owner):
            self._scheduler.unsaved(slot)
        if self._disk is not None:
            parts = rows if rows.size else None, fixed if fixed.size else None
            self._disk.write(tokens, start, *parts, self._written, owner)

    def _written(self, record: Record | None) -> None:
        """Called in another thread."""
        if record is not None:
            self._results.put(Written(record))

    def _fetch(self, sequence: Sequence, end: int) -> None:
        """Read what is only on disk of a prefix, in another thread; the sequence waits, others do not."""
        records = self._scheduler.cache.missing(sequence.tokens, end, sequence.owner)
        if self._disk is None or not records:
            sequence.fetch = "done"
            return
        for record in records:
            waiting = sequence if record is records[-1] else None
            self._disk.read(record, functools.partial(self._fetched, record, waiting))

    def _fetched(self, record: Record, sequence: Sequence | None, payload: Payload | None) -> None:
        """Called in another thread."""
        self._results.put(Fetched(record, payload, sequence))

    def take(self, result: Result) -> None:
        """Take what the disk's threads report."""
        match result:
            case Written(record):
                self._scheduler.cache.recorded(record)
            case Fetched():
                self._take_fetched(result)
            case Lost(record):
                self._scheduler.cache.lost(record)

    def _take_fetched(self, fetched: Fetched) -> None:
        record, cache = fetched.record, self._scheduler.cache
        if fetched.payload is None:
            cache.lost(record)
        else:
            rows, fixed = fetched.payload
            if rows is None:
                rows = np.empty((len(record.tokens) - record.start, 0), np.uint8)
            cache.store(record.tokens.tolist(), record.start, rows, NOTHING if fixed is None else fixed, record.owner)
        if fetched.sequence is not None:
            fetched.sequence.fetch = "done"

    def _restore(self, move: Restore) -> None:
        sequence, start, end = move.sequence, move.start, move.end
        if sequence.slot == UNPLACED:  # the same plan has put it back for somebody else
            return
        began = time.perf_counter()
        if self._try_restore(move):
            self._scheduler.costs.observe_move(end - start, time.perf_counter() - began)
            self._scheduler.restored(sequence, start, end)
            record = self._scheduler.cache.record(sequence.tokens, end, sequence.owner)
            if self._disk is not None and record is not None:
                self._disk.touch(record)
            return
        logger.warning("a prefix of %d tokens could not be put back from host RAM", end)
        self._scheduler.unrestored(sequence, end)

    def _try_restore(self, move: Restore) -> bool:
        sequence, start, end = move.sequence, move.start, move.end
        try:
            snapshot = self._scheduler.cache.snapshot(sequence.tokens, start, end, sequence.owner)
            first, last = sequence.position(start), sequence.position(end - 1)
            return snapshot is not None and self._put_back(sequence.slot, first, last + 1, *snapshot)
        except Exception:
            logger.exception("a restore failed")
            for slot in {sequence.slot, self._scheduler.limits.slots} if start else {sequence.slot}:
                self._context.remove(slot)
            return False

    def _put_back(self, slot: int, start: int, end: int, rows: list[Rows], fixed: Bytes) -> bool:
        """Restore positions [start, end) into a slot that has those before: through a spare one, since a restore empties its
        target."""
        if not start:
            return self._context.restore(slot, rows, fixed, end)
        spare = self._scheduler.limits.slots
        if not self._context.restore(spare, rows, fixed, end):
            return False
        self._context.copy(spare, slot, start, end)
        self._context.remove(spare)
        return True

    def _relocate(self, sequence: Sequence, source: int) -> None:
        began = time.perf_counter()
        if self._context.move(source, sequence.slot, sequence.position(sequence.computed - 1) + 1):
            self._scheduler.costs.observe_move(2 * sequence.computed, time.perf_counter() - began)
            return
        logger.warning("a sequence of %d tokens could not be moved", sequence.computed)
        self._scheduler.unrestored(sequence, 0)
