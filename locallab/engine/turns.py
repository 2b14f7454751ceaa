"""Turns between sets of adapters, of which a batch has one. Pure.

Sets whose answers are read have turns one after the other, and between two steps with prompts each of them has one: a reader
waits for one such step, as without adapters. Where nothing else decides, callers come one after the other, each with that of
its sets which has waited longest: a caller that uses many sets takes no more of the time than one with a single set. Who comes
new waits for those who wait, so that everybody's turn comes after a number of turns that depends only on who is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Seq

from locallab.engine.adapters import BASE, AdapterSet
from locallab.engine.costs import StepCosts
from locallab.engine.sequence import Sequence

HOLD = 10
"""Times the cost of a switch that a turn without prompts lasts, as long as readers of other sets wait no longer than a step may
take for theirs."""

Split = tuple[list[Sequence], list[Sequence], list[Sequence]]


class Turns:
    """Remembers whose turn it is, and who had the last ones. `step_seconds` is the target for the longest step."""

    def __init__(self, costs: StepCosts, step_seconds: float) -> None:
        self._costs = costs
        self._step_seconds = step_seconds
        self._current = BASE
        self._left = 0.0  # seconds of the turn
        self._reading = _Ring()
        self._prompts = _Ring()
        self._served: set[AdapterSet] = set()  # those whose readers have had a turn since the last step with prompts
        self._contested = False

    def split(self, running: Seq[Sequence], decoding: Seq[Sequence]) -> Split:
        """Return of the running sequences those that this step computes, all of one set: of the `decoding` ones and of the
        others; and the decoding ones of other sets, which wait for its end. Mutates the turns."""
        reading = set(decoding)
        prompts = [s for s in running if s not in reading]
        if not self._is_contested(running):
            return list(decoding), prompts, []
        prompts = [s for s in prompts if not s.awaits]
        if not (decoding or prompts):
            return [], [], []
        prompts = prompts if self._choose(running, decoding, prompts) else []
        mine, others = ([s for s in decoding if (s.adapters == self._current) == own] for own in (True, False))
        return mine, [s for s in prompts if s.adapters == self._current], others

    def _is_contested(self, running: Seq[Sequence]) -> bool:
        """Tell whether several sets run; with one alone, it is its turn."""
        current = self._current
        contested = not all(s.adapters is current for s in running)  # they mostly are: no time is lost without adapters
        if contested:
            sets = {s.adapters for s in running}
            contested = len(sets) > 1
            self._current = current if contested else running[0].adapters
        if self._contested and not contested:
            self._reading, self._prompts, self._left = _Ring(), _Ring(), 0.0
            self._served.clear()
        self._contested = contested
        return contested

    def _choose(self, running: Seq[Sequence], decoding: Seq[Sequence], prompts: Seq[Sequence]) -> bool:
        """Begin or continue a turn; return whether it is one with prompts."""
        if self._left <= 0 or not any(s.adapters == self._current for s in decoding):
            due = [s for s in decoding if s.adapters not in self._served]
            if prompts and not due:
                self._current = self._prompts.following(prompts, running, self._current)
                self._served = {self._current}  # its readers have a token in the same step
                self._left = 0.0
                return True
            self._current = self._reading.following(due or decoding, running, self._current)
            self._served.add(self._current)
            sets = {s.adapters for s in running}
            self._left = min(HOLD * self._costs.switch_seconds, self._step_seconds / (len(sets) - 1))
        self._left -= self._costs.decode(sum(s.adapters == self._current for s in decoding))
        return False


class _Ring:
    """The order in which callers, and sets, had their last turns."""

    def __init__(self) -> None:
        self._clock = itertools.count()
        self._callers: dict[str, int] = {}
        self._sets: dict[AdapterSet, int] = {}

    def following(self, sequences: Seq[Sequence], running: Seq[Sequence], current: AdapterSet) -> AdapterSet:
        """Return the set of the next turn, of those of some `running` sequences; of new ones the `current` one comes last."""
        present, sets = {s.caller.id for s in running}, {s.adapters for s in running}
        self._callers = {id: when for id, when in self._callers.items() if id in present}
        self._sets = {each: when for each, when in self._sets.items() if each in sets}
        for sequence in sorted(sequences, key=lambda s: s.adapters == current):
            self._callers.setdefault(sequence.caller.id, next(self._clock))
            self._sets.setdefault(sequence.adapters, next(self._clock))
        caller = min({s.caller.id for s in sequences}, key=self._callers.__getitem__)
        chosen = min({s.adapters for s in sequences if s.caller.id == caller}, key=self._sets.__getitem__)
        self._callers[caller] = self._sets[chosen] = next(self._clock)
        return chosen
