"""A model and a context without weights: the next token is a hash of the tokens that lie in a sequence's cells.

Cells are kept as llama.cpp keeps them (shared by `copy`, one pool, positions without gaps), so a prefix that is reused
wrongly, a cell that leaks or a pool that overflows shows at once.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from locallab.engine.llama import NO_ROOM, Batch
from locallab.errors import EngineFailure

VOCAB = 64
END = 0


def next_token(tokens: Sequence[int]) -> int:
    return zlib.crc32(bytes(tokens)) % (VOCAB - 1) + 1


def answer(prompt: Sequence[int], count: int) -> list[int]:
    """Return the tokens that a request must get, alone or with others."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def guided_answer(prompt: Sequence[int], count: int) -> list[int]:
    """Return the same for a request with a FakeGuide."""
    tokens = [*prompt, *forced(prompt[-1])]
    while len(tokens) < len(prompt) + count:
        tokens.append(next_token(tokens))
        tokens += forced(tokens[-1])
    return tokens[len(prompt) : len(prompt) + count]


def forced(token: int) -> list[int]:
    """Return the tokens forced after a sampled one: often none, seldom many."""
    count = (0, 0, 3, 0, 1, 0, 7, 0, 0, 40, 0)[token % 11]
    return [(token * 7 + i * 5) % (VOCAB - 1) + 1 for i in range(count)]


class FakeGuide:
    """A grammar that forces tokens and else allows all; checks that the worker keeps to Guide's contract."""

    complete = False

    def __init__(self, prompt: Sequence[int], fails: bool = False) -> None:
        self._fails = fails
        self.due = forced(prompt[-1])
        self.has_mask = False

    def take(self) -> list[int]:
        due, self.due = self.due, []
        return due

    def restrict(self, logits: npt.NDArray[np.float32], banned: Sequence[int]) -> bool:
        assert self.has_mask and not self.due
        if self._fails:
            raise EngineFailure("the grammar cannot be followed")
        return True

    def accept(self, token: int) -> None:
        assert self.has_mask and not self.due
        self.has_mask = False
        self.due = forced(token)


class FakeMasks:
    """Computes masks only in `wait`, like the slowest threads. `waits` counts the calls."""

    def __init__(self) -> None:
        self._wanted: list[FakeGuide] = []
        self._running: list[FakeGuide] = []
        self.waits = 0

    def want(self, guide: FakeGuide) -> None:
        assert guide not in self._wanted and not guide.has_mask
        self._wanted.append(guide)

    def start(self) -> None:
        self._running += self._wanted
        self._wanted = []

    def wait(self) -> None:
        self.waits += 1
        for guide in self._running:
            guide.has_mask = True
        self._running = []

    def close(self) -> None:
        pass


class FakeModel:
    end_tokens = frozenset({END})
    n_vocab = VOCAB

    def piece(self, token: int) -> bytes:
        return b"<%d>" % token

    def markup(self, token: int) -> bytes:
        raise AssertionError("every token here stands for something")


class FakeContext:
    def __init__(self, cells: int, can_rewind: bool = True, slots: int = 256) -> None:
        self.n_ctx = cells
        self.slots = slots
        self.can_rewind = can_rewind
        self.sequences: dict[int, list[tuple[int, int]]] = {}
        self.decoded = 0
        self._cell = itertools.count()
        self._outputs: list[list[int]] = []

    @property
    def used(self) -> int:
        return len({cell for cells in self.sequences.values() for cell, _ in cells})

    def tokens(self, sequence: int) -> list[int]:
        return [token for _, token in self.sequences.get(sequence, [])]

    def copy(self, source: int, target: int, length: int) -> None:
        assert not self.sequences.get(target), "the target of a copy must be empty"
        cells = self.sequences[source]
        assert length <= len(cells), "more was copied than is there"
        assert self.can_rewind or length == len(cells), "this model shares only whole sequences"
        self.sequences[target] = cells[:length]

    def remove(self, sequence: int, start: int = 0) -> None:
        assert self.can_rewind or start == 0, "this model cannot rewind"
        self.sequences[sequence] = self.sequences.get(sequence, [])[:start]
        if not start:
            del self.sequences[sequence]

    def clear(self) -> None:
        self.sequences.clear()

    def save(self, sequence: int) -> bytes:
        return bytes(self.tokens(sequence))

    def restore(self, state: bytes, sequence: int) -> bool:
        assert not self.sequences.get(sequence), "the target of a restore must be empty"
        if self.used + len(state) > self.n_ctx:
            return False
        self.sequences[sequence] = [(next(self._cell), token) for token in state]
        return True

    def decode(self, batch: Batch) -> int:
        n = batch.raw.n_tokens
        if self.used + n > self.n_ctx:
            return NO_ROOM
        self._outputs = []
        self.decoded += n
        for i in range(n):
            slot = int(batch._sequences[i])
            cells = self.sequences.setdefault(slot, [])
            assert batch._positions[i] == len(cells), "positions must have no gaps"
            cells.append((next(self._cell), int(batch._tokens[i])))
            if batch._outputs[i]:
                self._outputs.append(self.tokens(slot))
        return 0

    def logits(self) -> npt.NDArray[np.float32]:
        assert len(self._outputs) <= self.slots, "llama.cpp has been told of fewer outputs"
        rows = np.zeros((len(self._outputs), VOCAB), np.float32)
        for row, tokens in zip(rows, self._outputs, strict=True):
            row[next_token(tokens)] = 1
        return rows
