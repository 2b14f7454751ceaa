"""A model and a context without weights: the next token is a hash of the tokens that lie in a sequence's cells.

Cells are kept as llama.cpp keeps them (a pool in which `copy` shares them, or a stream of them for each sequence; positions
without gaps), so a prefix that is reused wrongly, a cell that leaks or a pool that overflows shows at once.
"""

from __future__ import annotations

import collections
import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from locallab.engine.adapters import BASE, AdapterInfo, AdapterSet
from locallab.engine.batch import AnyBatch, Batch
from locallab.engine.context import NO_ROOM
from locallab.engine.media.runs import Embeddings, ids
from locallab.engine.sequence import Sequence as Engaged
from locallab.engine.state_format import Bytes, Rows
from locallab.errors import EngineFailure
from locallab.settings import Layout

Kind = Literal["attention", "window", "recurrent"]
Cells = dict[int, tuple[int, int]]
"""Of each position the cell and the token in it."""

VOCAB = 64
END = 0
PERIOD = 6


REPEATER = 5
"""A sequence that begins with this token mostly repeats itself: what it says next can be guessed."""


def crc(tokens: Sequence[int], start: int = 0) -> int:
    return zlib.crc32(bytes(token & 255 for token in tokens), start)


def next_token(tokens: Sequence[int]) -> int:
    number = crc(tokens)
    if tokens[0] == REPEATER and len(tokens) > PERIOD and number % 7 and tokens[-PERIOD] >= 0:
        return tokens[-PERIOD]
    return number % (VOCAB - 1) + 1


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


def poor_guess(tokens: Sequence[int]) -> int:
    """Return what a small model says: the same as the large one three times in four."""
    number = crc(tokens, 1)
    return next_token(tokens) if number % 4 else number % (VOCAB - 1) + 1


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

    def restrict(self, logits: npt.NDArray[np.float32]) -> None:
        assert self.has_mask and not self.due
        if self._fails:
            raise EngineFailure("the grammar cannot be followed")

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


FIXED_BYTES = {"attention": 0, "window": 8, "recurrent": 8}
ROW_BYTES = {"attention": 8, "window": 8, "recurrent": 0}


class FakeContext:
    """Memory of one `kind`, in one `layout`. `decoded` counts tokens; `fails` says how many of the next calls of "save",
    "restore" (`move` too) and "decode" fail, the last for lack of room. A "crash" of a decode leaves a part of it behind.

    Memory of the kind "attention" can be cut. Others have a state besides the rows, which belongs to one position: all of it
    is restored, or nothing.
    """

    def __init__(
        self,
        cells: int,
        layout: Layout = "unified",
        kind: Kind = "attention",
        n_sequences: int = 256,
        says: Callable[[Sequence[int]], int] = next_token,
    ) -> None:
        """`says` returns the token that follows those of a sequence."""
        self.says = says
        self.places = 1
        self.n_ctx = cells
        self.n_sequences = n_sequences
        self.n_outputs = n_sequences
        self.layout = layout
        self.kind = kind
        self.sequences: dict[int, Cells] = {}
        self.decoded = 0
        self.fails: collections.Counter[str] = collections.Counter()
        self._cell = itertools.count()
        self._outputs: list[list[int]] = []
        self._last: dict[int, int] = {}  # where the last batch began in each sequence
        self._states: dict[bytes, list[int]] = {}
        self.adapters = BASE
        self._made: dict[int, AdapterSet] = {}  # what cells were computed with, but for those that were put back

    @property
    def used(self) -> int:
        return len({cell for cells in self.sequences.values() for cell, _ in cells.values()})

    def tokens(self, sequence: int) -> list[int]:
        return tokens_in(self.sequences.get(sequence, {}))

    def state(self, fixed: Bytes) -> list[int]:
        """Return the tokens whose state the fixed part of a snapshot is."""
        return self._states[fixed.tobytes()]

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        assert self.layout == "unified" and self.kind == "attention", "these sequences share no cells"
        cells = self._of(target)
        assert not any(start <= position < end for position in cells), "the target of a copy must have no cells there"
        cells.update({position: self._of(source)[position] for position in range(start, end)})

    def remove(self, sequence: int, start: int = 0, end: int = -1) -> None:
        cells = self._of(sequence)
        gone = [position for position in cells if start <= position and not 0 <= end <= position]
        last = self._last.get(sequence, len(cells)) if self.kind == "window" else len(cells)
        assert self.kind == "attention" or len(gone) in (0, len(cells)) or min(gone) > last, "this memory cannot be cut"
        for position in gone:
            del cells[position]

    def clear(self) -> None:
        self.sequences.clear()

    def save(self, sequence: int, start: int, count: int) -> tuple[Rows, Bytes]:
        tokens = self.tokens(sequence)
        assert len(tokens) == count, "a sequence is saved as it is"
        if self._fails("save"):
            raise EngineFailure("the state cannot be saved")
        fixed = np.array([count, crc(tokens)], np.uint32).view(np.uint8)[: FIXED_BYTES[self.kind]]
        self._states[fixed.tobytes()] = tokens
        return rows_of(tokens)[start:, : ROW_BYTES[self.kind]], fixed

    def restore(self, sequence: int, rows: list[Rows], fixed: Bytes, end: int) -> bool:
        cells = self._of(sequence)
        assert not cells, "the target of a restore must be empty"
        if self._fails("restore"):
            return False
        found = np.concatenate(rows)
        start = end - len(found)
        tokens = self.state(fixed)[start:] if self.kind == "recurrent" else [token for token, _ in read_rows(found)]
        assert self.kind == "recurrent" or [at for _, at in read_rows(found)] == list(range(start, end)), "rows out of place"
        assert self.kind == "attention" or (start, tokens) == (0, self.state(fixed)), "rows of one state, the rest of another"
        assert self._has_room({sequence: len(tokens)}), "something is put back where there is no room"
        cells.update({start + i: (next(self._cell), token) for i, token in enumerate(tokens)})
        return True

    def move(self, source: int, target: int, end: int) -> bool:
        assert self.layout == "streams" and not self.sequences.get(target), "the target of a move must be an empty stream"
        cells = self.sequences.pop(source)
        assert len(cells) == end, "a sequence is moved as it is"
        if self._fails("restore"):
            return False
        self.sequences[target] = cells
        return True

    def use(self, adapters: AdapterSet) -> bool:
        before, self.adapters = self.adapters, adapters
        return before != adapters

    def decode(self, batch: AnyBatch) -> int:
        count = batch.raw.n_tokens
        tokens = batch._tokens[:count] if isinstance(batch, Batch) else tokens_of(batch._embeddings)
        slots = batch._sequences[: batch.raw.n_tokens].tolist()
        if self._fails("decode"):
            return NO_ROOM
        if self._fails("crash"):
            self._of(slots[0])[len(self._of(slots[0]))] = (next(self._cell), END)
            raise EngineFailure("llama_decode failed with code -3")
        assert self._has_room(collections.Counter(slots)), "more is computed than there is room for"
        assert self.layout == "unified" or slots == sorted(slots), "streams must be in order"
        self._outputs = []
        self._last = {slot: len(self._of(slot)) for slot in slots}
        self.decoded += len(slots)
        for i, slot in enumerate(slots):
            cells = self._of(slot)
            assert batch._positions[i] == len(cells), "positions must have no gaps"
            cell = next(self._cell)
            cells[len(cells)] = (cell, int(tokens[i]))
            self._made[cell] = self.adapters
            assert {self._made.get(each, self.adapters) for each, _ in cells.values()} == {self.adapters}, "other adapters"
            if batch._outputs[i]:
                self._outputs.append(self.tokens(slot))
        return 0

    def logits(self) -> npt.NDArray[np.float32]:
        assert len(self._outputs) <= self.n_outputs, "llama.cpp has been told of fewer outputs"
        rows = np.zeros((len(self._outputs), VOCAB), np.float32)
        for row, tokens in zip(rows, self._outputs, strict=True):
            row[self.says(tokens)] = 1
        return rows

    def _of(self, sequence: int) -> Cells:
        assert 0 <= sequence < self.n_sequences, "llama.cpp has been told of fewer sequences"
        return self.sequences.setdefault(sequence, {})

    def _has_room(self, more: dict[int, int]) -> bool:
        if self.layout == "unified":
            return self.used + sum(more.values()) <= self.n_ctx
        return all(len(self._of(slot)) + count <= self.n_ctx // self.n_sequences for slot, count in more.items())

    def _fails(self, call: str) -> bool:
        fails = self.fails[call] > 0
        self.fails[call] -= fails
        return fails


def embeddings_of(ids: Sequence[int]) -> Embeddings:
    """Return embeddings that tell their ids, in two exact floats each."""
    return np.array([(id >> 16, id & 0xFFFF) for id in ids], np.float32)


def tokens_of(embeddings: Embeddings) -> list[int]:
    return [(int(high) << 16) | int(low) for high, low in embeddings]


class FakeEncoder:
    """Encodes the first run that is wanted when it has been asked for as often as `patience` says."""

    def __init__(self, patience: int = 1) -> None:
        self.patience = patience
        self.encoded = 0
        self._asked = 0

    def serve(self, sequences: Iterable[Engaged]) -> None:
        wanted = [run for sequence in sequences for run in sequence.unencoded]
        self._asked = self._asked + 1 if wanted else 0
        if self._asked >= self.patience and wanted:
            self._asked = 0
            self.encoded += 1
            wanted[0].embeddings = embeddings_of(ids(wanted[0].key, wanted[0].count))

    def close(self) -> None: ...


ADAPTERS = tuple(AdapterInfo(name, 1.0, "", "", f"digest of {name}") for name in ("one", "two"))
"""Those of a FakeContext."""


def tokens_in(cells: Cells) -> list[int]:
    assert sorted(cells) == list(range(len(cells))), "a sequence has a hole"
    return [cells[position][1] for position in range(len(cells))]


def rows_of(tokens: Sequence[int]) -> Rows:
    """Return rows that tell their tokens and positions."""
    return np.array([tokens, range(len(tokens))], np.int32).T.copy().view(np.uint8).reshape(len(tokens), 8)


def read_rows(rows: Rows) -> list[tuple[int, int]]:
    """Return the token and the position of each row."""
    return [(int(token), int(position)) for token, position in rows.copy().view(np.int32).reshape(-1, 2)]
