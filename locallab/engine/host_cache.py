"""Prefixes that were moved out of the KV pool: their states in host RAM, up to a set size. Pure."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from locallab.engine.cache import UNLIMITED, common_length

State = npt.NDArray[np.uint8]
"""What Context.save gave; only its length matters here."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A saved state of all of `tokens`."""

    tokens: list[int]
    state: State


@dataclasses.dataclass(frozen=True, slots=True)
class StoredMatch:
    """The first `length` tokens of a prompt are those of `stored`."""

    stored: Stored
    length: int


class HostCache:
    """States by their tokens, least recently used first. `capacity` is in bytes; `rewind_limit` as for PrefixCache."""

    def __init__(self, capacity: int, rewind_limit: int = UNLIMITED) -> None:
        self.capacity = capacity
        self.size = 0
        self._rewind_limit = rewind_limit
        self._entries: OrderedDict[int, Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, tokens: list[int]) -> StoredMatch | None:
        """The entry that shares the longest prefix of `tokens`, at most all but the last. Does not mutate."""
        best: StoredMatch | None = None
        for stored in self._entries.values():
            length = common_length(stored.tokens, tokens, 0, len(tokens) - 1)
            if self._usable(stored, length) and length > (best.length if best else 0):
                best = StoredMatch(stored, length)
        return best

    def covers(self, tokens: list[int]) -> bool:
        """Whether an entry holds all of `tokens` already. Does not mutate."""
        n = len(tokens)
        return any(common_length(e.tokens, tokens, 0, n) == n and self._usable(e, n) for e in self._entries.values())

    def put(self, tokens: list[int], state: State) -> None:
        """Mutates: adds a state as the most recently used one, and drops what it replaces or what has no room any more."""
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
        """Whether a state may be cut to its first `length` tokens."""
        return length == len(stored.tokens) or len(stored.tokens) <= self._rewind_limit

    def touch(self, stored: Stored) -> None:
        """Mutates: marks an entry as used just now."""
        self._entries.move_to_end(id(stored))

    def drop(self, stored: Stored) -> None:
        """Mutates: forgets an entry; nothing happens when it is gone already."""
        if self._entries.pop(id(stored), None):
            self.size -= len(stored.state)
