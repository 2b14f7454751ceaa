"""The plan of one step, which the scheduler makes and the worker carries out. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from collections.abc import Sequence as Seq

from locallab.engine.device_sampling import DevicePlan
from locallab.engine.media.runs import Run
from locallab.engine.sequence import Sequence

FORCED = 16
"""Tokens of an answer, known all at once, up to which it counts as decoding; what is more is computed as a prompt is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Copy:
    """Let `target` share the cells of positions [start, end) of `source`, in place of its own if it has any there."""

    source: int
    target: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True, slots=True)
class Remove:
    """Drop the cells of `slot` from position `start` on."""

    slot: int
    start: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Save:
    """Keep the state of `slot`, which has computed `tokens`, in host RAM for its owner."""

    slot: int
    tokens: list[int]
    owner: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Restore:
    """Put the stored state of tokens [start, end) of a sequence into its slot, which has those before `start`."""

    sequence: Sequence
    start: int
    end: int


@dataclasses.dataclass(frozen=True, slots=True)
class Relocate:
    """Move a running sequence, `tokens` long, from the stream `source` to its slot."""

    sequence: Sequence
    source: int


@dataclasses.dataclass(frozen=True, slots=True)
class Fetch:
    """Read from disk what a restore of the first `end` tokens of a waiting sequence needs."""

    sequence: Sequence
    end: int


Move = Copy | Remove | Save | Restore | Relocate | Fetch


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Compute tokens [start, start + count) of a sequence. All of it is fixed when it is planned.

    `last`: it reaches the last known token; a `draft`, part of it, may follow. `outputs` of its last tokens need logits: the
    last known one if the next token is to be found, those of a draft, more where a prompt's log probabilities are wanted.
    `is_answer`: it costs what decoding costs. `run` is the picture or sound that its tokens stand for. A draft
    of `guess` tokens is the draft model's, which makes it (`with_draft`) before the chunk is computed.
    """

    sequence: Sequence
    start: int
    count: int
    last: bool
    outputs: int
    is_answer: bool
    draft: tuple[int, ...] = ()
    guess: int = 0
    run: Run | None = None

    @property
    def drafted(self) -> int:
        """The number of its tokens that are a draft."""
        return self.guess or len(self.draft)

    @property
    def known(self) -> int:
        """The number of its tokens that are known."""
        return self.count - self.drafted

    @classmethod
    def verifying(cls, sequence: Sequence, draft: Seq[int]) -> Chunk:
        """Return the chunk of a sequence's last known token and a draft of those that follow."""
        count = 1 + len(draft)
        return cls(sequence, sequence.computed, count, last=True, outputs=count, is_answer=True, draft=tuple(draft))

    @classmethod
    def guessing(cls, sequence: Sequence, length: int) -> Chunk:
        """Return the same for a draft of `length` tokens that the draft model is to make."""
        return dataclasses.replace(cls.verifying(sequence, [0] * length), draft=(), guess=length)

    def with_draft(self, draft: Seq[int]) -> Chunk:
        """Return the chunk with the draft that was to be made."""
        return dataclasses.replace(self, draft=tuple(draft))

    @classmethod
    def of(cls, sequence: Sequence, count: int) -> Chunk:
        """Return the chunk of the next `count` known tokens of a sequence."""
        start, end = sequence.computed, sequence.computed + count
        last, unscored = end == len(sequence.tokens), sequence.unscored
        outputs = max(0, end - max(start, sequence.n_prompt - 1 - unscored)) if unscored else int(last)
        is_answer = start >= sequence.n_prompt - 1 and count <= FORCED
        return cls(sequence, start, count, last, outputs, is_answer, run=sequence.run)


def batch_entries(chunks: Iterable[Chunk]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return of each token of a batch the token itself, its position, its slot, and 1 if its logits are wanted."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    outputs: list[int] = []
    for chunk in chunks:
        at = chunk.sequence.position(chunk.start)
        tokens += chunk.sequence.tokens[chunk.start : chunk.start + chunk.known]
        tokens += chunk.draft
        positions += range(at, at + chunk.count)
        slots += [chunk.sequence.slot] * chunk.count
        outputs += [0] * (chunk.count - chunk.outputs) + [1] * chunk.outputs
    return tokens, positions, slots, outputs


def device_plans(chunks: Iterable[Chunk]) -> dict[int, DevicePlan | None]:
    """Return for each slot with an output in a batch how it is drawn on the device, None: on the host, as are several outputs
    of one (a draft's), since a sampler there draws once a batch."""
    return {c.sequence.slot: c.sequence.answer.device_plan if c.outputs == 1 else None for c in chunks if c.outputs}


@dataclasses.dataclass(frozen=True, slots=True)
class Read:
    """Let the draft model compute the next `count` known tokens of a sequence."""

    sequence: Sequence
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: first the moves in order, then what the draft model reads and guesses, then one llama_decode for each batch."""

    moves: list[Move]
    batches: list[list[Chunk]]
    read: Read | None = None

    @property
    def guesses(self) -> bool:
        """True if the draft model has something to do."""
        return self.read is not None or any(chunk.guess for batch in self.batches for chunk in batch)
