"""Decides how many tokens of which sequences a step computes, and in which batches. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from locallab.engine.costs import StepCosts
from locallab.engine.drafting import Drafting
from locallab.engine.fairness import Shares
from locallab.engine.follower import Follower
from locallab.engine.limits import Limits
from locallab.engine.sequence import Sequence
from locallab.engine.step_plan import Chunk, cut

TILE_STEPS = 10
"""A tile may take this many times the length of a step: less than a tile hardly takes less time, or even more."""
LEAST_CHUNK = 16
"""Least prompt tokens in a step, however slow the machine."""


class Chunking:
    """Takes turns between prompts, so it remembers who was first. Every method mutates that, none a sequence."""

    def __init__(self, limits: Limits, costs: StepCosts, shares: Shares, follower: Follower | None = None) -> None:
        self.limits = limits
        self.shares = shares
        self.costs = costs
        self.drafting = Drafting(limits, costs, follower)
        self.read = self.drafting.read
        self._oldest_first = False
        self._ahead = 0  # prompt tokens by which urgent sequences are ahead of others, while there are both

    def answers(self, decoding: list[Sequence], room: int, free: int = 0) -> Iterator[Chunk]:
        """Yield a token for each, and of forced tokens as many more as the budget and `room` cells allow, oldest sequence
        first; without those, drafts where they pay, of at most `free` tokens."""
        n_decode = len(decoding)
        spare = sum(s.pending for s in decoding) - n_decode
        if spare:
            spare = min(spare, self._budget(n_decode), self.limits.batch - n_decode, room)
        drafts = self.drafting.chunks(decoding, free) if not spare else {}
        for sequence in decoding:
            if sequence in drafts:
                yield drafts[sequence]
                continue
            count = 1 + max(0, min(sequence.pending - 1, spare))
            spare -= count - 1
            yield Chunk.of(sequence, count)

    def prompts(self, prefilling: list[Sequence], n_decode: int, room: int, outputs: int) -> Iterator[Chunk]:
        """Yield chunks of prompts for the rest of the budget beside `n_decode` tokens of answers: at most `room` cells, and
        `outputs` log probabilities beyond the one that each prompt may need."""
        if not prefilling:
            return
        room = min(self.limits.batch - n_decode, room)
        budget = min(self._budget(n_decode), room)
        tile = self.limits.tile if budget >= self.limits.tile else 0
        for sequence in self.shares.by_debt(self._in_turn(prefilling)):
            if budget <= 0:
                return
            if sequence.unscored:
                count = min(sequence.pending, budget, 1 + outputs)
                outputs -= count - 1
            else:
                count = cut(self._until_boundary(sequence), budget, room, tile)
            if count:
                self._ahead = max(0, self._ahead + (count if sequence.urgent else -count))
                yield Chunk.of(sequence, count)
            room -= count
            budget -= count

    def _until_boundary(self, sequence: Sequence) -> int:
        """Return the pending tokens of a prompt up to where its state must be saved, if that cannot be cut there later."""
        if self.limits.cuts or not sequence.boundaries:
            return sequence.pending
        return min(sequence.pending, sequence.boundaries[0] - sequence.computed)

    def _in_turn(self, prefilling: list[Sequence]) -> list[Sequence]:
        """Return prompts in the order in which they get budget: in turns the oldest first and the shortest first, where one
        that others wait for is as short as the shortest of these. Urgent ones, and what they wait for, go before all others
        while those have not had fewer tokens."""
        self._oldest_first = not self._oldest_first
        ordered = prefilling if self._oldest_first else sorted(prefilling, key=_shortest)
        urgent = [any(each.urgent for each in (s, *s.waiters)) for s in ordered]
        if all(urgent) or not any(urgent):
            self._ahead = 0
            return ordered
        first = self._ahead <= 0
        return [s for s, u in zip(ordered, urgent, strict=True) if u == first] + [
            s for s, u in zip(ordered, urgent, strict=True) if u != first
        ]

    def _budget(self, n_decode: int) -> int:
        """Return the prompt tokens of this step: as many as keep it short for those who read their answers.

        Where attention works in tiles, a part of one costs several times as much per token once the context is long. So the
        budget is whole tiles, at least one, unless a tile takes far too long (a large model on a slow machine).
        """
        seconds = self.limits.step_seconds * (1 if n_decode else 2.5)
        tokens = max(LEAST_CHUNK, self.costs.chunk(n_decode, seconds))
        tile = self.limits.tile
        patience = self.limits.step_seconds * (TILE_STEPS if n_decode else 2.5 * TILE_STEPS)
        if tile and tile * self.costs.per_token() <= patience:
            return max(tile, (tokens + tile // 2) // tile * tile)
        return tokens

    def batches(self, answers: list[Chunk], prompts: list[Chunk]) -> list[list[Chunk]]:
        """Put all chunks into one batch; where attention works in tiles, answers into batches below a tile, then prompts.

        Where a batch must be even: answers with one token, in the order of their ids, and all others alone.
        """
        if self.limits.even:
            single = sorted((chunk for chunk in answers if chunk.count == 1), key=lambda chunk: chunk.sequence.slot)
            longer = [chunk for chunk in answers if chunk.count > 1 and not chunk.drafted]
            return [
                *_packed(single, self.limits.batch),
                *self._even([chunk for chunk in answers if chunk.drafted]),
                *([chunk] for chunk in longer + prompts),
            ]
        tile = self.limits.tile
        if not tile or sum(chunk.count for chunk in answers + prompts) < tile:
            return list(_packed(answers + prompts, self.limits.batch))
        return [*_packed(answers, tile - 1), *_packed(prompts, self.limits.batch)]

    def _even(self, drafts: list[Chunk]) -> Iterator[list[Chunk]]:
        """Put drafts of the same length together, in the order of the streams."""
        for count in sorted({chunk.count for chunk in drafts}):
            same = sorted((chunk for chunk in drafts if chunk.count == count), key=lambda chunk: chunk.sequence.slot)
            yield from _packed(same, self.limits.batch)


def _packed(chunks: list[Chunk], size: int) -> Iterator[list[Chunk]]:
    """Split chunks into batches of at most `size` tokens; a larger chunk gets a batch of its own."""
    part: list[Chunk] = []
    filled = 0
    for chunk in chunks:
        if part and filled + chunk.count > size:
            yield part
            part, filled = [], 0
        part.append(chunk)
        filled += chunk.count
    if part:
        yield part


def _shortest(sequence: Sequence) -> int:
    """Return the least number of tokens to compute until somebody has a whole prompt, itself or one that waits for it."""
    return min(len(s.tokens) for s in (sequence, *sequence.waiters)) - sequence.computed
