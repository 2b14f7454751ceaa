"""A model of the prefix cache without a tree, in sets and dicts of token prefixes; and states whose bytes tell their tokens."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from locallab.engine.cache import PrefixCache
from locallab.engine.prefix_tree import NOTHING, Node
from locallab.engine.record import Record
from locallab.engine.state_format import Bytes, Rows

ROW, FIXED = 6, 10
"""Bytes of a row and of a fixed part."""

Prefix = tuple[int, ...]


def row(prefix: Prefix) -> bytes:
    """Return the row of the last token: the token, its position, and a checksum of all before."""
    return bytes([prefix[-1], len(prefix) - 1]) + zlib.crc32(bytes(prefix)).to_bytes(4, "little")


def rows_of(tokens: Iterable[int], start: int = 0) -> Rows:
    """Return the rows of tokens[start:]."""
    whole = tuple(tokens)
    data = b"".join(row(prefix) for prefix in prefixes(whole)[start:])
    return np.frombuffer(data, np.uint8).reshape(len(whole) - start, ROW)


def fixed_of(tokens: Iterable[int]) -> Bytes:
    """Return the fixed part of a state of these tokens."""
    return np.frombuffer(row(tuple(tokens)).ljust(FIXED, b"."), np.uint8)


def prefixes(tokens: Iterable[int]) -> list[Prefix]:
    """Return the prefixes of `tokens`, shortest first, without the empty one."""
    whole = tuple(tokens)
    return [whole[:n] for n in range(1, len(whole) + 1)]


def common(a: Iterable[int], b: Iterable[int]) -> int:
    """Return the length of the common prefix."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def record_of(tokens: Iterable[int], start: int, fixed: bool = False) -> Record:
    """Return a record on disk of the rows of tokens[start:], with a fixed part at their end or without."""
    whole = list(tokens)
    return Record(np.array(whole, np.int32), start, True, FIXED if fixed else 0, 0, Path("nowhere"))


@dataclasses.dataclass
class Resident:
    """A sequence: its tokens, how many are computed, and whether it is running."""

    tokens: list[int]
    computed: int
    live: bool = True

    @property
    def held(self) -> set[Prefix]:
        return set(prefixes(self.tokens[: self.computed]))


@dataclasses.dataclass
class Stored:
    """What is in host RAM and on disk, by prefix: the row of its last token, and the fixed part of its end."""

    rows: set[Prefix] = dataclasses.field(default_factory=set)
    fixed: set[Prefix] = dataclasses.field(default_factory=set)
    rows_on: dict[Prefix, Record] = dataclasses.field(default_factory=dict)
    fixed_on: dict[Prefix, Record] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        return ROW * len(self.rows) + FIXED * len(self.fixed)

    @property
    def all(self) -> set[Prefix]:
        return self.rows | self.fixed | self.rows_on.keys() | self.fixed_on.keys()


def contents(cache: PrefixCache) -> Stored:
    """Return what a cache has stored, found by walking its tree. Raises AssertionError where bytes are another prefix's."""
    found = Stored()
    stack: list[tuple[Prefix, Node]] = [((), cache._root)]
    while stack:
        above, node = stack.pop()
        whole = above + tuple(node.tokens)
        inside = prefixes(whole)[node.start :]
        if node.rows is not None:
            assert np.array_equal(node.rows, rows_of(whole, node.start)), f"rows of other tokens than {whole}"
            found.rows.update(inside)
        if node.fixed is not None:
            assert np.array_equal(node.fixed, fixed_of(whole)), f"the fixed part of other tokens than {whole}"
            found.fixed.add(whole)
        if node.rows_on is not None:
            found.rows_on.update(dict.fromkeys(inside, node.rows_on))
        if node.fixed_on is not None:
            found.fixed_on[whole] = node.fixed_on
        stack += [(whole, child) for child in node.children.values()]
    return found


@dataclasses.dataclass
class PrefixModel:
    """What a PrefixCache should have and find. `evicted` takes over what only the cache can decide: what made room."""

    cuts: bool
    shares: bool
    capacity: int
    entries: dict[int, Resident] = dataclasses.field(default_factory=dict)
    stored: Stored = dataclasses.field(default_factory=Stored)
    seen: set[Prefix] = dataclasses.field(default_factory=set)

    def fixed_part(self, tokens: Iterable[int]) -> Bytes:
        return NOTHING if self.cuts else fixed_of(tokens)

    def store(self, tokens: list[int], start: int) -> None:
        rows = prefixes(tokens)[start:]
        self.seen.update(prefixes(tokens))
        if ROW * len(rows) + self.fixed_part(tokens).nbytes <= self.capacity:
            self.stored.rows.update(rows)
            self.stored.fixed.update(() if self.cuts else [tuple(tokens)])

    def evicted(self, left: Stored) -> None:
        """Accept what is left after prefixes made room, if it may be so."""
        before, self.stored = self.stored, left
        assert left.rows <= before.rows and left.fixed <= before.fixed, "what was never stored"
        assert (left.rows_on, left.fixed_on) == (before.rows_on, before.fixed_on), "the disk needs no room"
        gone = before.rows - left.rows
        needing = left.rows if self.cuts else left.fixed
        for needed in needing:
            needs = [prefix for prefix in prefixes(needed) if prefix in gone]
            if needs and all(prefix in before.rows for prefix in prefixes(needed)):
                raise AssertionError(f"{needs[0]} went before {needed}, which needs it")

    def record(self, record: Record) -> None:
        tokens = tuple(record.tokens.tolist())
        self.seen.update(prefixes(tokens))
        for prefix in prefixes(tokens)[record.start :]:
            self.stored.rows_on.setdefault(prefix, record)
        if not self.cuts:
            self.stored.fixed_on[tokens] = record

    def lose(self, record: Record) -> None:
        for where in (self.stored.rows_on, self.stored.fixed_on):
            for prefix in [prefix for prefix, on in where.items() if on is record]:
                del where[prefix]

    # What should be found

    def used(self, live: tuple[bool, ...] = (True, False)) -> int:
        entries = [entry for entry in self.entries.values() if entry.live in live]
        return len(self._held(entries)) if self.shares else sum(entry.computed for entry in entries)

    def cold(self) -> int:
        return self.used() - self.used((True,))

    def private(self, slot: int) -> int:
        entry = self.entries[slot]
        others = [other for s, other in self.entries.items() if s != slot]
        return len(entry.held - self._held(others)) if self.shares else entry.computed

    def resident(self, tokens: list[int], live: tuple[bool, ...] = (True, False)) -> int:
        """Return the longest computed prefix of `tokens`, but for the last, that a sequence can give."""
        return max((self.gives(slot, tokens) for slot, entry in self.entries.items() if entry.live in live), default=0)

    def gives(self, slot: int, tokens: list[int]) -> int:
        entry = self.entries[slot]
        length = min(common(entry.tokens[: entry.computed], tokens), len(tokens) - 1)
        return length if self.cuts or length == entry.computed else 0

    def known(self, tokens: list[int]) -> dict[int, int]:
        """Return how many of the tokens, but for the last, each running sequence has or will have."""
        return {s: min(common(e.tokens, tokens), len(tokens) - 1) for s, e in self.entries.items() if e.live}

    def with_rows(self, tokens: list[int]) -> int:
        has = self.stored.rows | self.stored.rows_on.keys()
        return next((len(p) - 1 for p in prefixes(tokens) if p not in has), len(tokens))

    def restorable(self, tokens: list[int]) -> int:
        """Return the longest prefix of `tokens`, but for the last, that can be put back from RAM and disk."""
        length = self.with_rows(tokens[:-1])
        if self.cuts:
            return length
        ends = self.stored.fixed | self.stored.fixed_on.keys()
        return max((n for n in range(1, length + 1) if tuple(tokens[:n]) in ends), default=0)

    def missing(self, tokens: list[int]) -> set[Record]:
        """Return the records that a restore of `tokens` needs."""
        wanted = {self.stored.rows_on[p] for p in prefixes(tokens) if p not in self.stored.rows}
        if not self.cuts and tuple(tokens) not in self.stored.fixed:
            wanted.add(self.stored.fixed_on[tuple(tokens)])
        return wanted

    def unsaved(self, tokens: list[int]) -> int:
        rows = self.with_rows(tokens)
        if self.cuts:
            return len(tokens) - rows
        has_fixed = tuple(tokens) in self.stored.fixed or tuple(tokens) in self.stored.fixed_on
        return 0 if rows == len(tokens) and has_fixed else len(tokens)

    def held(self, tokens: list[int]) -> int:
        """Return at least how many of the tokens, but for the last, there is any state of, or will be."""
        anything = self.stored.all.union(*(prefixes(entry.tokens) for entry in self.entries.values()))
        return max((len(p) for p in prefixes(tokens[:-1]) if p in anything), default=0)

    def ever(self, tokens: list[int]) -> int:
        return max((len(p) for p in prefixes(tokens[:-1]) if p in self.seen), default=0)

    def _held(self, entries: Iterable[Resident]) -> set[Prefix]:
        return set().union(*(entry.held for entry in entries))
