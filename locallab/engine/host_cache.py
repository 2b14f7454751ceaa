"""States of prefixes that were evicted from the KV pool, in host RAM up to a configured size. Pure."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from locallab.engine.cache import UNLIMITED, common_length

State = npt.NDArray[np.uint8]
"""Bytes from Context.save; only their number matters here."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """The saved state of a sequence with these tokens."""

    tokens: list[int]
    state: State


@dataclasses.dataclass(frozen=True, slots=True)
class StoredMatch:
    """A prefix of `length` tokens that a prompt shares with `stored`."""

    stored: Stored
    length: int


class HostCache:
    """States and their tokens, least recently used first. `capacity` and `size` are bytes; `rewind_limit` as in PrefixCache."""

    def __init__(self, capacity: int, rewind_limit: int = UNLIMITED) -> None:
        self.capacity = capacity
        self.size = 0
        self._rewind_limit = rewind_limit
        self._entries: OrderedDict[int, Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, tokens: list[int]) -> StoredMatch | None:
        """Return the entry that shares the longest prefix of `tokens`, which is at most all but the last token."""
        best: StoredMatch | None = None
        for stored in self._entries.values():
            length = common_length(stored.tokens, tokens, 0, len(tokens) - 1)
            if self._usable(stored, length) and length > (best.length if best else 0):
                best = StoredMatch(stored, length)
        return best

    def covers(self, tokens: list[int]) -> bool:
        """Return True if an entry holds all of `tokens`."""
        n = len(tokens)
        return any(common_length(e.tokens, tokens, 0, n) == n and self._usable(e, n) for e in self._entries.values())

    def put(self, tokens: list[int], state: State) -> None:
        """Add a state as the most recently used one; drop those that it replaces and those that no longer fit."""
        if len(state) > self.capacity:
            return
        stored = Stored(tokens, state)
        for entry in list(self._entries.values()):
            n = len(entry.tokens)
            if common_length(entry.tokens, tokens, 0, len(tokens)) == n and self._usable(stored, n):
                self.drop(entry)
        self._entries[id(stored)] = stored
        self.size += len(state)
        while self.size > self.capacity:
            self.drop(next(iter(self._entries.values())))

    def _usable(self, stored: Stored, length: int) -> bool:
        """Return True if a state may be cut to its first `length` tokens."""
        return length == len(stored.tokens) or len(stored.tokens) <= self._rewind_limit

    def touch(self, stored: Stored) -> None:
        """Mark an entry as the most recently used one."""
        self._entries.move_to_end(id(stored))

    def drop(self, stored: Stored) -> None:
        """Remove an entry, if it is still there."""
        if self._entries.pop(id(stored), None):
            self.size -= len(stored.state)
