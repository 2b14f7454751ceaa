"""The queue of requests that have no place yet. Pure."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Container, Iterator

from locallab.engine.fairness import Shares, held
from locallab.engine.sequence import UNPLACED, Sequence

ADMISSIONS = 64
"""Waiting requests considered in one step, so that a long queue costs no time between steps."""
OVERTAKING = 4
"""Urgent requests in a row that are admitted ahead of waiting others; then one of the others goes first."""


class Waiting(list[Sequence]):
    """Sequences in the order in which they came, urgent ones before all others."""

    def __init__(self) -> None:
        self._order = itertools.count()
        self._overtaken: Counter[str] = Counter()  # urgent ones admitted ahead of a caller's others since the last of those

    @property
    def fetches(self) -> bool:
        """True if one of them waits for what is read from disk."""
        return any(sequence.fetch == "asked" for sequence in self)

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

    def in_turn(self, hidden: Container[Sequence], shares: Shares, places: Counter[str]) -> Iterator[Sequence]:
        """Yield sequences in the order of admission, those `hidden` left out: first the caller with the fewest `places` for its
        weight, of whose requests the urgent ones, but not too many in a row. The caller of this admits each before the next, or
        leaves it; `places` are those that each caller has, and are counted on."""
        lines: dict[str, list[Sequence]] = defaultdict(list)
        for sequence in self:
            if sequence not in hidden:
                lines[sequence.caller.id].append(sequence)
        heads = {id: _Line(line) for id, line in lines.items()}
        while heads:
            id = min(heads, key=lambda id: heads[id].standing(places[id], shares)) if len(heads) > 1 else next(iter(heads))
            line = heads[id]
            overtakes = bool(line.urgent and line.others) and self._overtaken[id] < OVERTAKING
            sequence = (line.urgent if overtakes or not line.others else line.others).popleft()
            if not (line.urgent or line.others):
                del heads[id]
            yield sequence
            if sequence.slot != UNPLACED:
                places[id] += 1
                self._overtaken[id] += 1
                if not overtakes:
                    del self._overtaken[id]

    def crowded_out(self, newest: Sequence, running: list[Sequence]) -> Sequence:
        """Return the sequence that has to leave a full queue: the last that has not begun of the caller with most requests for
        its weight, or else the newest, which has just come."""
        requests = held([*self, *running])

        def rank(sequence: Sequence) -> tuple[float, bool, int]:
            caller = sequence.caller
            return requests[caller.id] / caller.weight, caller.id == newest.caller.id, sequence.order

        return max((s for s in self if s.began is None), key=rank)


class _Line:
    """The waiting sequences of one caller."""

    def __init__(self, line: list[Sequence]) -> None:
        self.urgent = deque(s for s in line[:ADMISSIONS] if s.urgent)
        self.others = deque(itertools.islice((s for s in line if not s.urgent), ADMISSIONS))

    def standing(self, places: int, shares: Shares) -> tuple[float, float, int]:
        """Return what decides which caller is next: places for its weight, what it is owed, who came first."""
        first = (self.urgent or self.others)[0]
        return places / first.caller.weight, -shares.owed(first), first.order
