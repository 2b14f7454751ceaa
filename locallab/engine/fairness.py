"""Turns between callers: deficit round robin, counted in computed tokens. Pure.

While only one caller has requests, nothing here changes their order or costs time.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq

from locallab.engine.caller import Caller
from locallab.engine.costs import StepCosts
from locallab.engine.sequence import Sequence
from locallab.engine.step_plan import Chunk

QUANTUM = 512
"""Tokens for each weight that a caller is owed when it comes, and the most that it may be owed or ahead later."""


@dataclasses.dataclass(slots=True)
class _Account:
    """`requests` that have not ended; tokens that the caller is owed; the slot of the answer that had the last token."""

    weight: int = 1
    requests: int = 0
    owed: float = 0.0
    slot: int = -1


class Shares:
    """What each caller with requests has had of the computed tokens, beside its share of them."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._weights = 0

    @property
    def contested(self) -> bool:
        """True if several callers have requests."""
        return len(self._accounts) > 1

    def enter(self, caller: Caller) -> None:
        """Count a request in. Who comes new is owed a quantum, so that a short request need not wait for long ones."""
        account = self._accounts.get(caller.id)
        if account is None:
            account = self._accounts[caller.id] = _Account(owed=QUANTUM * caller.weight)
            account.weight = 0
        self._weights += caller.weight - account.weight
        account.weight = caller.weight
        account.requests += 1

    def leave(self, caller: Caller) -> None:
        """Count an ended request out. Who has none left is owed nothing."""
        account = self._accounts[caller.id]
        account.requests -= 1
        if not account.requests:
            self._weights -= account.weight
            del self._accounts[caller.id]

    def clear(self) -> None:
        """Count all requests out."""
        self._accounts.clear()
        self._weights = 0

    def spend(self, chunks: Iterable[Chunk]) -> None:
        """Charge computed tokens to their callers, and credit each with its share of them."""
        if not self.contested:
            for account in self._accounts.values():
                account.owed = 0.0
            return
        spent: collections.Counter[str] = collections.Counter()
        for chunk in chunks:
            spent[chunk.sequence.caller.id] += chunk.count
        credit = spent.total() / self._weights
        for id, account in self._accounts.items():
            most = QUANTUM * account.weight
            account.owed = max(-most, min(most, account.owed + credit * account.weight - spent[id]))

    def owed(self, sequence: Sequence) -> float:
        """Return the tokens for each weight that a sequence's caller is owed, or more if that of one that waits for it is."""
        accounts = [self._accounts[each.caller.id] for each in (sequence, *sequence.waiters)]
        return max(account.owed / account.weight for account in accounts)

    def by_debt(self, sequences: list[Sequence]) -> list[Sequence]:
        """Return sequences with those first whose callers are owed most; those of one caller keep their order."""
        return sorted(sequences, key=self.owed, reverse=True) if self.contested else sequences

    def answers(self, decoding: list[Sequence], prompts: Seq[Sequence], costs: StepCosts, seconds: float) -> list[Sequence]:
        """Return the answers that get a token in this step. While prompts of others are to be computed, those of one caller
        take at most its share of a step's `seconds`, in turns by their slots, which should be adjacent."""
        if not (self.contested and prompts and decoding):
            return decoding
        of: dict[str, list[Sequence]] = collections.defaultdict(list)
        for sequence in decoding:
            of[sequence.caller.id].append(sequence)
        left_out: set[Sequence] = set()
        for id, mine in of.items():
            account = self._accounts[id]
            allowed, wanted = seconds * account.weight / self._weights, costs.decode(len(mine))
            if wanted > allowed and any(prompt.caller.id != id for prompt in prompts):
                count = max(1, int(len(mine) * allowed / wanted))
                turn = sorted(mine, key=lambda s: (s.slot <= account.slot, s.slot))
                account.slot = turn[count - 1].slot
                left_out.update(turn[count:])
        return [sequence for sequence in decoding if sequence not in left_out]


def held(running: Iterable[Sequence], size: Callable[[Sequence], int] = lambda _: 1) -> collections.Counter[str]:
    """Return what the running sequences of each caller take: places, or what `size` says."""
    found: collections.Counter[str] = collections.Counter()
    for sequence in running:
        found[sequence.caller.id] += size(sequence)
    return found


def gives_way(claimant: Sequence, running: Seq[Sequence], size: Callable[[Sequence], int]) -> Sequence | None:
    """Return the sequence whose place a waiting one of another caller may have: one of the caller that takes most for its
    weight, if that still takes no less than the claimant's caller with what it claims."""
    taken = held(running, size)
    others = [s for s in running if s.caller.id != claimant.caller.id]
    if not others:
        return None
    most = max(others, key=lambda s: taken[s.caller.id] / s.caller.weight).caller
    victim = max((s for s in others if s.caller.id == most.id), key=lambda s: (s.n_answer - s.turn_began, s.id))
    left = (taken[most.id] - size(victim)) / most.weight
    claimed = (taken[claimant.caller.id] + size(claimant)) / claimant.caller.weight
    return victim if left >= claimed else None


def longest_turn(claimant: Sequence, running: Seq[Sequence], turn: int) -> Sequence | None:
    """Return the sequence that has had the longest turn, at least `turn` tokens of its answer, and lets a waiting one have its
    place: one of the same caller, or after a quarter of that one of a caller with more places for its weight."""
    places = held(running)

    def due(sequence: Sequence) -> int:
        if sequence.caller.id == claimant.caller.id:
            return turn
        more = places[sequence.caller.id] / sequence.caller.weight > places[claimant.caller.id] / claimant.caller.weight
        return max(1, turn // 4) if more else 1 << 40

    over = (s for s in running if s.n_answer - s.turn_began >= due(s))
    return max(over, key=lambda s: s.n_answer - s.turn_began, default=None)


def youngest(running: Seq[Sequence]) -> Sequence:
    """Return the sequence to be preempted: the youngest of the caller that takes most for its weight. The oldest of all stays,
    so that each comes to its end."""
    taken = held(running, lambda s: s.computed)
    return max(running[1:] or running, key=lambda s: (taken[s.caller.id] / s.caller.weight, s.id))
