"""Who asks: what an engine shares its time, its queue and its prefixes by."""

from __future__ import annotations

import collections
import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """One client, whatever it asks: `id` is "key:ID" or "address:IP", and stays the same between requests and restarts.

    Callers share the engine's time in the ratio of their `weight`. A caller uses the prefixes of its `owner` alone, "" being
    the one that all share. Its `name` is for people who watch.
    """

    id: str = ""
    weight: int = 1
    owner: str = ""
    name: str = dataclasses.field(default="", compare=False)


LOCAL = Caller()
"""The program that the engine is part of."""


class Places:
    """Counts the open requests of each caller. Every method but `has_less` mutates it."""

    def __init__(self) -> None:
        self.total = 0
        self._of: collections.Counter[Caller] = collections.Counter()

    def enter(self, caller: Caller) -> None:
        self.total += 1
        self._of[caller] += 1

    def leave(self, caller: Caller) -> None:
        self.total -= 1
        self._of[caller] -= 1
        if not self._of[caller]:
            del self._of[caller]

    def has_less(self, caller: Caller) -> bool:
        """Tell whether another caller has more requests for its weight, even with one more of this caller."""
        mine = (self._of[caller] + 1) / caller.weight
        return any(count / other.weight > mine for other, count in self._of.items() if other.id != caller.id)
