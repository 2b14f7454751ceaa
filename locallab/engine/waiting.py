"""The queue of requests that have no place yet. Pure."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Container, Iterator

from locallab.engine.sequence import UNPLACED, Sequence

ADMISSIONS = 64
"""Waiting requests considered in one step, so that a long queue costs no time between steps."""
OVERTAKING = 4
"""Urgent requests in a row that are admitted ahead of waiting others; then one of the others goes first."""


class Waiting(list[Sequence]):
    """Sequences in the order in which they came, urgent ones before all others."""

    def __init__(self) -> None:
        self._order = itertools.count()
        self._overtaken = 0  # urgent sequences admitted ahead of others since the last one of those

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        sequence.order = next(self._order)
        self.put_back(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Queue a sequence where it was before."""
        bisect.insort(self, sequence, key=lambda s: (not s.urgent, s.order))

    def to_the_end(self, sequence: Sequence) -> None:
        """Let all others go first."""
        self.remove(sequence)
        self.add(sequence)

    def in_turn(self, hidden: Container[Sequence]) -> Iterator[Sequence]:
        """Yield sequences in the order of admission, those `hidden` left out: urgent ones first, but not too many in a row. The
        caller admits each before the next, or leaves it."""
        ready = [s for s in self if s not in hidden]
        urgent = [s for s in ready[:ADMISSIONS] if s.urgent]
        others = list(itertools.islice((s for s in ready if not s.urgent), ADMISSIONS))
        while urgent or others:
            overtakes = bool(urgent and others) and self._overtaken < OVERTAKING
            sequence = (urgent if overtakes or not others else others).pop(0)
            yield sequence
            if sequence.slot != UNPLACED:
                self._overtaken = self._overtaken + 1 if overtakes else 0
