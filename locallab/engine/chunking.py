"""Decides how many tokens of which sequences a step computes, and in which batches. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq

from locallab.engine.costs import StepCosts
from locallab.engine.cut import LEAST, cut
from locallab.engine.drafting import Drafting
from locallab.engine.fairness import Shares
from locallab.engine.follower import Follower
from locallab.engine.limits import Limits
from locallab.engine.sequence import Sequence
from locallab.engine.step_plan import Chunk
from locallab.memory_model import STEP

LEAST_CHUNK = 16
"""Least forced tokens in a step, however slow the machine."""
PATIENCE = 4
"""Usual times between two tokens of a reader that a step may take."""
SHARE = 2
"""Least patience, in times of a step in which all that run are answers."""
BEGUN = 2.5
"""Times `step_seconds` that the first step may take whose prompts become answers."""
ALONE = 25
"""Times `step_seconds` that a step may take while nobody reads; who comes meanwhile waits for its end."""


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
        drafts = self.drafting.chunks(decoding, free) if free > 0 and not spare else {}
        for sequence in decoding:
            if sequence in drafts:
                yield drafts[sequence]
                continue
            count = 1 + max(0, min(sequence.pending - 1, spare))
            spare -= count - 1
            yield Chunk.of(sequence, count)

    def prompts(
        self, prefilling: list[Sequence], answers: list[Chunk], room: int, outputs: int, others: Seq[Sequence] = ()
    ) -> Iterator[Chunk]:
        """Yield chunks of prompts beside those of `answers`, as long as these tolerate, and `others`, which read answers that
        are no part of this step: at most `room` cells, and `outputs` log probabilities beyond the one that each prompt may
        need."""
        if not prefilling:
            return
        room = min(self.limits.batch - sum(chunk.count for chunk in answers), room)
        left = min(room, STEP)
        spent, patience = self._answer_seconds(answers), self._patience(answers, prefilling, others)
        first = True
        for sequence in self.shares.by_debt(self._in_turn([s for s in prefilling if not s.awaits])):
            if left < (1 if first else LEAST) or not (first or spent + self.costs.prompt(LEAST) <= patience):
                return
            count = self._cut(sequence, left, spent, patience)
            if sequence.run is not None and sequence.run.whole:
                count = sequence.at_hand
                if count > room:
                    continue
            if sequence.unscored:
                count = min(count, 1 + outputs)
                outputs -= count - 1
            seconds = self._seconds(count, sequence.computed)
            if not first and spent + seconds > patience:
                continue
            self._ahead = max(0, self._ahead + (count if sequence.urgent else -count))
            chunk = Chunk.of(sequence, count)
            if chunk.last and not answers and not others:
                patience = BEGUN * self.limits.step_seconds  # now somebody reads
            yield chunk
            first, left, spent = False, left - count, spent + seconds

    def _cut(self, sequence: Sequence, most: int, spent: float, patience: float) -> int:
        pending, start = self._until_boundary(sequence), sequence.computed
        return cut(pending, start, most, self.limits.tile, spent, patience, self._seconds)

    def _seconds(self, count: int, start: int) -> float:
        """Return the seconds of a chunk of a prompt."""
        return self.costs.prompt(count, self.limits.work(count, start))

    def _answer_seconds(self, answers: list[Chunk], more: Iterable[Sequence] = ()) -> float:
        """Return the seconds of a batch of answers, and of `more` sequences as if they were answers too."""
        lengths = [len(sequence.tokens) for sequence in more]
        cells, _ = work(answers, self.limits)
        return self.costs.decode(sum(chunk.count for chunk in answers) + len(lengths), cells + sum(lengths))

    def _patience(self, answers: list[Chunk], prefilling: list[Sequence], others: Seq[Sequence]) -> float:
        """Return the seconds that a step may take: what the least patient reader tolerates, no more than `step_seconds`. Where
        there are many, prompts get their share of the time, since who reads and who waits for the first token shares it."""
        step = self.limits.step_seconds
        readers = [*(chunk.sequence for chunk in answers), *others]
        if not readers:
            return ALONE * step
        tolerated = min(self._tolerated(reader) for reader in readers)
        return max(SHARE * self._answer_seconds(answers, prefilling), min(step, tolerated))

    def _tolerated(self, reader: Sequence) -> float:
        """Return the seconds that a reader waits for a token without missing it; one who has only begun has shown none."""
        return PATIENCE * reader.pace or self.limits.step_seconds

    def _budget(self, n_decode: int) -> int:
        """Return the forced tokens of this step: as many as keep it short for those who read their answers."""
        return max(LEAST_CHUNK, self.costs.chunk(n_decode, self.limits.step_seconds))

    def _until_boundary(self, sequence: Sequence) -> int:
        """Return the pending tokens of a prompt up to where its state must be saved, if that cannot be cut there later."""
        if self.limits.cuts or not sequence.boundaries:
            return sequence.at_hand
        return min(sequence.at_hand, sequence.boundaries[0] - sequence.computed)

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

    def batches(self, answers: list[Chunk], prompts: list[Chunk]) -> list[list[Chunk]]:
        """Put all chunks into one batch; where attention works in tiles, answers into batches below a tile, then prompts.

        Where a batch must be even: answers with one token, in the order of their ids, and all others alone. A picture is a
        batch of its own.
        """
        pictures = [[chunk] for chunk in prompts if chunk.run is not None]
        return self._texts(answers, [chunk for chunk in prompts if chunk.run is None]) + pictures

    def _texts(self, answers: list[Chunk], prompts: list[Chunk]) -> list[list[Chunk]]:
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


def work(chunks: list[Chunk], limits: Limits) -> tuple[int, float]:
    """Return the cells that the answers of a batch see, and the work of attention for its prompts (`Limits.work`)."""
    cells = sum(chunk.count * chunk.start for chunk in chunks if chunk.is_answer)
    return cells, sum(limits.work(chunk.count, chunk.start) for chunk in chunks if not chunk.is_answer)


def learn(costs: StepCosts, chunks: list[Chunk], limits: Limits, seconds: float, waited: bool, switched: bool) -> None:
    """Show the costs a batch, which may have been `switched` to other adapters; one with drafts and prompts tells too little of
    either."""
    n_answers = sum(chunk.count for chunk in chunks if chunk.is_answer)
    n_prompt = sum(chunk.count for chunk in chunks) - n_answers
    drafts = [len(chunk.draft) for chunk in chunks if chunk.draft]
    cells, prompts = work(chunks, limits)
    if switched:
        if waited and not n_prompt and not drafts:
            costs.observe_switch(seconds - costs.decode(n_answers, cells))
        seconds = max(seconds / 10, seconds - costs.switch_seconds)
    if not drafts:
        (costs.observe if waited else costs.defer)(n_answers, n_prompt, seconds, cells, prompts)
    elif not n_prompt:
        costs.observe_drafts(len(chunks), len(drafts), max(drafts), seconds)


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
