"""What one step does, as the scheduler plans it and the worker carries it out. Pure."""

from __future__ import annotations

import dataclasses

from locallab.engine.host_cache import Stored
from locallab.engine.sequence import Sequence

FORCED = 16
"""Tokens of an answer, known all at once, up to which it counts as decoding; what is more is computed as a prompt is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Copy:
    """Share the first `length` cells of `source` with the empty sequence `target`."""

    source: int
    target: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class Remove:
    sequence: int


@dataclasses.dataclass(frozen=True, slots=True)
class Save:
    """Read the state of `sequence` and give it to the host cache as the state of `tokens`."""

    sequence: int
    tokens: list[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Restore:
    """Put a state of the host cache into the slot of `sequence`, then keep its first `length` cells."""

    sequence: Sequence
    stored: Stored
    length: int


Move = Copy | Remove | Save | Restore


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Compute tokens [start, start + count) of a sequence; `last` when that reaches its last known token."""

    sequence: Sequence
    start: int
    count: int

    @property
    def last(self) -> bool:
        return self.start + self.count == len(self.sequence.tokens)

    @property
    def outputs(self) -> int:
        """Its last tokens whose logits are wanted: the very last if the next is to be found, more where a prompt's are told."""
        unscored = self.sequence.unscored
        if not unscored:
            return int(self.last)
        return max(0, self.start + self.count - max(self.start, self.sequence.n_prompt - 1 - unscored))

    @property
    def is_answer(self) -> bool:
        """Whether it is of an answer that is being decoded, to all that cost is concerned with."""
        return self.start >= self.sequence.n_prompt - 1 and self.count <= FORCED


@dataclasses.dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step does: first the moves in order, then one llama_decode for each batch."""

    moves: list[Move]
    batches: list[list[Chunk]]
