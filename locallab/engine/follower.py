"""What the draft model has computed of which sequence. Pure: the draft model itself is in `draft_model`."""

from __future__ import annotations

import dataclasses

from locallab.engine.costs import DraftCosts
from locallab.engine.prefix_tree import common_length
from locallab.engine.sequence import Sequence
from locallab.engine.speculative import Acceptance

FIRST_CHANCE = 0.6
"""Chance that a guess is right, before anything is known of the two models."""

LASTING = 0.995
"""Weight that what has been learnt of all sequences keeps with each token."""


@dataclasses.dataclass(eq=False, slots=True)
class Stream:
    """A stream of the draft model's KV cache. It holds the tokens `held`, of which the first `same` are its sequence's; behind
    them there may be wrong guesses. They stay when the sequence has ended, for another one of the same `owner`."""

    index: int
    held: list[int] = dataclasses.field(default_factory=list)
    same: int = 0
    owner: str = ""
    sequence: Sequence | None = None
    acceptance: Acceptance = dataclasses.field(default_factory=lambda: Acceptance(FIRST_CHANCE))


class Follower:
    """Gives each sequence that may have drafts a stream, first come, first served. Every method may mutate it.

    A stream holds `length` tokens. Where the draft model has a window, no more than the last `rewinds` of them can be removed
    without all others. The draft model computes up to `batch` tokens at once.
    """

    def __init__(self, streams: int, length: int, batch: int, rewinds: int | None = None) -> None:
        self.costs = DraftCosts()
        self.batch = batch
        self._length = length
        self._rewinds = rewinds
        self._streams = [Stream(index) for index in range(streams)]
        self._of: dict[Sequence, Stream] = {}
        self._chance = Acceptance(FIRST_CHANCE, LASTING)

    def leave(self, *sequences: Sequence) -> None:
        """Give back the streams of those that do not run any more."""
        for sequence in self._of.keys() & set(sequences):
            self._of.pop(sequence).sequence = None

    def stream(self, sequence: Sequence) -> Stream | None:
        """Return the stream of a sequence, with all that it has in common with it counted; a free one, if it has none and there
        is one: that which has most of it. The draft model sees no pictures."""
        if sequence.runs:
            return None
        stream = self._of.get(sequence) or self._place(sequence)
        if stream is None or len(sequence.tokens) > self._length:
            return None
        most = len(sequence.tokens) - 1  # the last token is computed for its logits
        stream.same = min(stream.same, most)
        if stream.same < min(most, len(stream.held)) and stream.held[stream.same] == sequence.tokens[stream.same]:
            stream.same += common_length(stream.held, sequence.tokens, stream.same, stream.same, most)
        if self._rewinds is not None and len(stream.held) - stream.same > self._rewinds:
            stream.same = 0
        return stream

    def lacks(self, sequence: Sequence) -> int | None:
        """Return how many tokens of a sequence the draft model has not computed; None if there is no stream for it."""
        stream = self.stream(sequence)
        return None if stream is None else len(sequence.tokens) - stream.same

    def chance(self, sequence: Sequence) -> float:
        """Return the chance that the draft model guesses the next token of a sequence with a stream."""
        return self._of[sequence].acceptance.chance

    def room(self, sequence: Sequence) -> int:
        """Return how many tokens behind a sequence its stream can hold."""
        return self._length - len(sequence.tokens)

    def computed(self, stream: Stream, tokens: list[int], *, known: bool) -> None:
        """Count tokens behind the first `same` as computed, in place of what was there; `known`: they are the sequence's."""
        stream.held[stream.same :] = tokens
        stream.same += len(tokens) if known else 0

    def guessed(self, sequence: Sequence, right: int, length: int) -> None:
        """Learn that of `length` guesses the first `right` were right."""
        self._chance.see(right, length)
        if sequence in self._of:
            self._of[sequence].acceptance.see(right, length)

    def rest(self, sequence: Sequence) -> None:
        """Note that a sequence goes on without a guess."""
        self._of[sequence].acceptance.rest()

    def forget(self) -> None:
        """Note that the draft model's KV cache is empty."""
        for stream in self._streams:
            stream.held.clear()
            stream.same = 0

    def end(self) -> None:
        """Follow no sequence any more."""
        self._streams.clear()
        self._of.clear()

    def _place(self, sequence: Sequence) -> Stream | None:
        owner = sequence.caller.owner
        free = [stream for stream in self._streams if stream.sequence is None]
        if not free:
            return None

        def shared(stream: Stream) -> int:
            most = len(sequence.tokens) - 1
            return common_length(stream.held, sequence.tokens, limit=most) if stream.owner == owner else 0

        stream = max(free, key=lambda each: (shared(each), -len(each.held)))
        self._chance.rest()
        stream.same, stream.owner, stream.sequence = shared(stream), owner, sequence
        stream.acceptance = Acceptance(self._chance.chance)
        self._of[sequence] = stream
        return stream
