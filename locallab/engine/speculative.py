"""Drafts of what an answer says next, found in what it has said or read, or guessed by a smaller model: tokens that one step
verifies together. Pure.

A draft is verified by computing it as if it were known and drawing from the logits of each place as ever: it is accepted as far
as it is what was drawn (Leviathan et al. 2023, with a draft that is certain of its tokens). So answers do not depend on drafts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np

NGRAM = 3
"""Tokens that must have occurred before for those that followed to be a draft."""

NONE = -1
"""What stands for anything but a token."""

LONGEST = 63
"""Maximum tokens of a draft: with the token before them they are a tile of attention."""

PRIOR = (0.5, 0.7, 0.85, 0.9)
"""Chance, before anything is known, of a source that has been right for less than 4, 12 or 36 tokens, or for more."""

WEIGHT = 2.0
"""Tokens that the prior counts for."""

MEMORY = 0.95
"""Weight that the hits and tries before the last one keep."""

REST = 0.98
"""Weight that what has been learnt of the draft model keeps with each token that it does not draft."""


class Lookup:
    """What an answer has read and said, and where in it the same text goes on: prompt lookup (Saxena 2023).

    It follows a source token by token. Where the answer says something else, the source is looked for again, behind the place
    where it was left if it is there: a file that is copied with changes goes on behind the change. `chance` is the share of
    tokens that were as a source has them that has been right for as long as this one, the last ones above all. Those count
    too that were not drafted.
    """

    def __init__(self, text: Seq[int], prediction: Seq[int] = ()) -> None:
        """`text` is what has been read, with negative numbers where that is no text; `prediction` what the answer is expected
        to be like."""
        start = [*prediction, NONE, *text] if prediction else list(text)
        self._known = np.empty(len(start) + 256, np.int32)
        self._known[: len(start)] = np.maximum(start, NONE)
        self._length = len(start)
        self._left = 0
        self._source = 0 if prediction else -1
        self._right = 0
        self._tries = [WEIGHT] * len(PRIOR)
        self._hits = [WEIGHT * chance for chance in PRIOR]
        if not prediction:
            self._find()

    @property
    def chance(self) -> float:
        kind = self._kind
        return self._hits[kind] / self._tries[kind]

    @property
    def _kind(self) -> int:
        right = self._right
        return 0 if right < 4 else 1 if right < 12 else 2 if right < 36 else 3

    def read(self, tokens: Iterable[int]) -> None:
        """Take the next tokens of the answer."""
        for token in tokens:
            if self._source >= 0:
                hit, kind = int(self._known[self._source]) == token, self._kind
                self._hits[kind] = MEMORY * self._hits[kind] + hit
                self._tries[kind] = MEMORY * self._tries[kind] + 1
                self._right = self._right + 1 if hit else 0
                self._left = self._source + hit
                self._source = self._left if hit else -1
            if self._length == len(self._known):
                self._known = np.concatenate([self._known, np.empty_like(self._known)])
            self._known[self._length] = token
            self._length += 1
            if self._source >= 0 and self._known[self._source] < 0:
                self._source = -1
        if self._source < 0:
            self._find()

    def reach(self, most: int) -> int:
        """Return how many tokens a draft of at most `most` has."""
        return most if self._source >= 0 else 0

    def draft(self, most: int) -> list[int]:
        """Return up to `most` tokens that may come next. Text that repeats itself is taken to go on so."""
        if self._source < 0 or most <= 0:
            return []
        found: list[int] = self._known[self._source : min(self._source + most, self._length)].tolist()
        if NONE in found:
            return found[: found.index(NONE)]
        while len(found) < most:  # the source has come up to the end of the answer
            found += found[: most - len(found)]
        return found

    def _find(self) -> None:
        """Look for the last tokens: the first place behind the one where the source was left, or else the last place."""
        if self._length <= NGRAM:
            return
        known = self._known[: self._length]
        last = known[-NGRAM:]
        found = known[:-NGRAM] == last[0]
        for i in range(1, NGRAM):
            found &= known[i : i - NGRAM] == last[i]
        places = np.flatnonzero(found) + NGRAM
        places = places[known[places] != NONE]
        if len(places):
            behind = int(np.searchsorted(places, self._left))
            self._source = int(places[behind if self._left and behind < len(places) else -1])


class Acceptance:
    """The chance that the next token of a draft is right, learnt from drafts, of which the last ones count most."""

    def __init__(self, chance: float, memory: float = MEMORY) -> None:
        self._origin = chance
        self._memory = memory
        self._hits, self._tries = chance * WEIGHT, WEIGHT

    @property
    def chance(self) -> float:
        return self._hits / self._tries

    def see(self, right: int, length: int) -> None:
        """Learn from a draft of `length` tokens whose first `right` were right; those behind a wrong one tell nothing."""
        tries = right + (right < length)
        kept = self._memory**tries
        self._hits = kept * self._hits + right
        self._tries = kept * self._tries + tries

    def rest(self) -> None:
        """Forget a little, while nothing is drafted: text that could not be guessed may be over."""
        self._hits += (1 - REST) * (self._origin * WEIGHT - self._hits)
        self._tries += (1 - REST) * (WEIGHT - self._tries)


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """An answer whose next token may have a draft: up to `most` tokens found in its text, each right with `chance`, or up to
    `guessable` ones of the draft model, each right with the chance `guess`."""

    chance: float
    most: int
    guess: float = 0.0
    guessable: int = 0


class Draft(NamedTuple):
    """The length of a draft in tokens, and whether it is the draft model's."""

    length: int
    guessed: bool = False


def gain(chance: float, count: int) -> float:
    """Return the tokens that a draft of `count` is expected to give: those up to the first wrong one."""
    return count * 1.0 if chance >= 1 else chance * (1 - chance**count) / (1 - chance)


def lengths(
    candidates: Seq[Candidate], answers: int, room: int, seconds: float, cost: Callable[[int, int, int], float]
) -> list[Draft]:
    """Return each candidate's draft: those with which a step gives the most tokens a second.

    The step has a token for each of `answers`, which the candidates are among. Those with a draft have one of the same length,
    so that they can be computed together, `room` tokens at most; `cost(drafting, length, guessing)` is the time of the step
    with that of the draft model for the `guessing` among them. It may take `seconds`.
    """
    best = [Draft(0)] * len(candidates)
    rate = answers / cost(0, 0, 0) if cost(0, 0, 0) else float("inf")
    length = 1
    while length <= min(LONGEST, room):
        found = {i: gain(each.chance, length) for i, each in enumerate(candidates) if each.most >= length}
        guesses = _guesses(candidates, length, found, rate, cost)
        options: list[Mapping[int, float]] = [{}, guesses] if guesses else [{}]
        for guessing in options:
            gains = {**found, **guessing}
            able = sorted(gains, key=lambda i: -gains[i])[: room // length]
            expected, guessed = float(answers), 0
            for count, i in enumerate(able, 1):
                expected += gains[i]
                guessed += i in guessing
                time = cost(count, length, guessed)
                if time <= seconds and expected / time > rate:
                    rate, drafting = expected / time, {j: Draft(length, j in guessing) for j in able[:count]}
                    best = [drafting.get(j, Draft(0)) for j in range(len(candidates))]
        length = 2 * length + 1  # with the known token before it a power of two
    return best


def _guesses(
    candidates: Seq[Candidate], length: int, found: Mapping[int, float], rate: float, cost: Callable[[int, int, int], float]
) -> dict[int, float]:
    """Return the gains of the draft model's drafts of this length, where they exceed those of what was `found` by more tokens
    than come in the time that they take, at this `rate`."""
    able = [i for i, each in enumerate(candidates) if each.guessable >= length]
    if not able:
        return {}
    n = len(able)
    price = rate * (cost(n, length, n) - cost(n, length, 0)) / n
    gains = {i: gain(candidates[i].guess, length) for i in able}
    return {i: gains[i] for i in able if gains[i] - found.get(i, 0.0) > price}
