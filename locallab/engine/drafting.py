"""Decides which answers get a draft, of what kind and length, and what the draft model reads for it. Pure.

A draft is found in the text of the answer (`speculative.Lookup`), which costs nothing, or guessed by the draft model, which
takes a step of it for each token and has to have read the sequence. Whichever gives more tokens a second is taken, if any does.
"""

from __future__ import annotations

import functools

from locallab.engine.costs import StepCosts
from locallab.engine.follower import Follower
from locallab.engine.limits import Limits
from locallab.engine.sequence import Sequence
from locallab.engine.speculative import Candidate, gain, lengths
from locallab.engine.step_plan import Chunk, Read
from locallab.memory_model import DRAFT_CATCH_UP

LEAST_CHANCE = 0.2
"""Chance of a token of a draft below which none is considered."""

MOST_GUESSES = 15
"""Maximum tokens of a draft that the draft model makes: each is a step of its own."""

LEAST_READ = 16
"""Minimum of tokens that the draft model reads beside a step, however slow it is."""

HORIZON = 256
"""Tokens of an answer for which reading it must pay: it may end before its limit."""


class Drafting:
    """`follower` is what a draft model has of the sequences; None without one."""

    def __init__(self, limits: Limits, costs: StepCosts, follower: Follower | None = None) -> None:
        self.follower = follower
        self._limits = limits
        self._costs = costs

    def leave(self, *sequences: Sequence) -> None:
        """Note that these do not run any more."""
        if self.follower is not None:
            self.follower.leave(*sequences)

    def chunks(self, decoding: list[Sequence], room: int) -> dict[Sequence, Chunk]:
        """Return the chunks with drafts that make this step give more tokens a second; drafts have `room` tokens at most."""
        found = {s: c for s in decoding if self._may_draft(s) and (c := self._candidate(s)) is not None}
        if not found:
            return {}
        n = len(decoding)
        cost = functools.partial(self._seconds, n)
        drafts = lengths(list(found.values()), n, self._room(n, room), self._patience(n), cost)
        chunks = {}
        for (sequence, candidate), draft in zip(found.items(), drafts, strict=True):
            if draft.guessed:
                chunks[sequence] = Chunk.guessing(sequence, draft.length)
            elif draft.length and sequence.lookup is not None:
                chunks[sequence] = Chunk.verifying(sequence, sequence.lookup.draft(draft.length))
            if candidate.guessable and not draft.guessed and self.follower is not None:
                self.follower.rest(sequence)
        return chunks

    def read(self, decoding: list[Sequence]) -> Read | None:
        """Return what the draft model should read beside this step: of the sequences whose drafts then pay, a piece of the one
        that lacks least."""
        follower = self.follower
        if follower is None:
            return None
        able = {s: lacks for s in decoding if self._may_draft(s) and (lacks := follower.lacks(s)) is not None}
        if all(lacks <= DRAFT_CATCH_UP for lacks in able.values()):
            return None
        n = len(decoding)
        candidates = [self._candidate(s, reading=True) or Candidate(0.0, 0) for s in able]  # as if all had been read
        cost = functools.partial(self._seconds, n)
        drafts = lengths(candidates, n, self._room(n, self._limits.outputs - n), self._patience(n), cost)
        drafting, guessing = (sum(each) for each in zip(*((d.length > 0, d.guessed) for d in drafts), strict=True))
        pays: list[tuple[int, Sequence]] = []
        for (sequence, lacks), draft in zip(able.items(), drafts, strict=True):
            if draft.guessed and lacks > DRAFT_CATCH_UP:
                tokens = 1 + gain(follower.chance(sequence), draft.length)
                saved = cost(0, 0, 0) - cost(drafting, draft.length, guessing) / tokens
                left = min(HORIZON, sequence.limit - len(sequence.tokens))
                pays += [(lacks, sequence)] if saved * left > follower.costs.read(lacks) else []
        if not pays:
            return None
        lacks, sequence = min(pays, key=lambda each: each[0])
        return Read(sequence, min(lacks - 1, self._piece(follower, n)))

    def _may_draft(self, sequence: Sequence) -> bool:
        return self._limits.drafts and sequence.lookup is not None and sequence.may_draft

    def _candidate(self, sequence: Sequence, reading: bool = False) -> Candidate | None:
        """Return how a sequence may be drafted for, with `reading` as if the draft model had read it; None: not at all."""
        most, lookup, follower = sequence.limit - len(sequence.tokens) - 1, sequence.lookup, self.follower
        chance = lookup.chance if lookup is not None else 0.0
        reach = lookup.reach(most) if lookup is not None and chance > LEAST_CHANCE else 0
        guess, guessable = 0.0, 0
        lacks = follower.lacks(sequence) if follower is not None else None
        if follower is not None and lacks is not None and (reading or lacks <= DRAFT_CATCH_UP):
            guess, guessable = follower.chance(sequence), self._guessable(follower, sequence)
        return Candidate(chance, reach, guess, guessable) if reach or guessable else None

    def _guessable(self, follower: Follower, sequence: Sequence) -> int:
        """Return how many tokens the draft model may guess of a sequence that it has read."""
        if follower.chance(sequence) <= LEAST_CHANCE:
            return 0
        return max(0, min(MOST_GUESSES, sequence.limit - len(sequence.tokens) - 1, follower.room(sequence)))

    def _piece(self, follower: Follower, answers: int) -> int:
        """Return how many tokens the draft model may read beside a step without making it longer than its target."""
        cost = follower.costs.read(1)
        spare = self._limits.step_seconds - self._costs.decode(answers)
        return min(follower.batch, max(LEAST_READ, int(spare / cost) if cost else follower.batch))

    def _room(self, answers: int, tokens: int) -> int:
        return min(tokens, self._limits.batch - answers)

    def _patience(self, answers: int) -> float:
        alone = self._costs.decode(answers)
        return max(self._limits.step_seconds * (1 if answers > 1 else 2.5), 2 * alone)

    def _seconds(self, answers: int, drafting: int, length: int, guessing: int) -> float:
        """Return the seconds of a step of which so many answers have drafts, with the time of the draft model for those that
        it makes."""
        costs = self._costs
        extra = costs.verify(drafting, length) if length else 0.0
        if guessing and self.follower is not None:
            extra += self.follower.costs.guess(guessing, length)
        if self._limits.even and drafting:  # those with drafts are a batch of their own
            return costs.decode(answers - drafting) + costs.decode(drafting) + extra
        return costs.decode(answers) + extra
