"""The layout of a saved sequence's bytes: rows, one for each token, and what belongs to all of them. Pure.

llama.cpp writes the state of a sequence tensor by tensor (llama_state_seq_get_data; llama_kv_cache::state_write). Read token by
token, the state of a prefix is the first rows of a longer one, so that prefixes are stored once and cut anywhere. What cannot
be cut, a window or a recurrent state, follows behind the rows: `fixed`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.uint8]
"""[tokens, bytes of a token]."""

STATE_HEAD = 8
"""Bytes of the magic number and the sequence id, which the reader ignores."""
_CELL = 12
"""Bytes of a cell without extension: position, number of sequences, sequence."""
_EXTENSIONS = (0, 8, 12)
"""Bytes between a cell's number of sequences and its sequence: models with several positions a token have some."""
_TENSOR = 12
"""Bytes of a tensor's header: its type, the bytes of a row."""


class UnknownFormat(ValueError):
    """The bytes are not as this module expects: another llama.cpp, or a cache that cannot be read token by token."""


@dataclasses.dataclass(frozen=True, slots=True)
class StateFormat:
    """How the states of one context are laid out. `tensors` are the headers of the K and V tensors with the bytes of a row;
    without `cell` bytes nothing is read token by token: rows are empty, and the whole state is `fixed`."""

    head: bytes = b""
    streams: int = 0
    cell: int = 0
    layers: int = 0
    tensors: tuple[tuple[bytes, int], ...] = ()

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self.cell + sum(size for _, size in self.tensors)

    @property
    def row(self) -> str:
        """The layout of a row as text: equal texts mean equal rows, whatever the number of streams."""
        return " ".join([str(self.cell), *(f"{header.hex()}:{size}" for header, size in self.tensors)])

    def split(self, state: Bytes, start: int, count: int) -> tuple[Rows, Bytes]:
        """Return copies of the rows of tokens [start, count) of a state of `count` tokens, and of what is fixed.

        Raises UnknownFormat unless the state has a cell for each position below `count`, and no other. Where positions have
        several dimensions, the cells of a picture share the first one.
        """
        if not self.cell:
            return np.empty((count - start, 0), np.uint8), state.copy()
        at = self._cells_at(state, count)
        cells = state[at : at + count * self.cell].reshape(count, self.cell)
        order = _order(cells)
        positions = _positions(cells)[order]
        if not np.array_equal(positions, np.arange(count)) and not (self.cell > _CELL and _has_picture(positions)):
            raise UnknownFormat("the cells are not those of a prefix")
        chosen: slice | npt.NDArray[np.intp] = order[start:]
        if np.array_equal(order, np.arange(count)):
            chosen = slice(start, count)
        rows = np.empty((count - start, self.width), np.uint8)
        rows[:, : self.cell] = cells[chosen]
        at += count * self.cell
        column = self.cell
        for header, size in self._parts:
            if bytes(state[at : at + len(header)]) != header:
                raise UnknownFormat("a tensor is not where it was")
            at += len(header)
            rows[:, column : column + size] = state[at : at + count * size].reshape(count, size)[chosen]
            at += count * size
            column += size
        streams_left = self.streams - 1 - self._stream_of(state)
        return rows, state[at + 4 * streams_left :].copy()

    def join(self, parts: list[Rows], fixed: Bytes) -> Bytes:
        """Return a state for `Context.restore` with the rows of `parts` one after the other."""
        if not self.cell:
            return fixed
        count = sum(len(part) for part in parts)
        n_base = 4 + 4 * self.streams + count * self.width + 8 + _TENSOR * len(self.tensors)
        state = np.zeros(STATE_HEAD + n_base + len(fixed), np.uint8)
        state[:STATE_HEAD] = np.frombuffer(self.head, np.uint8)
        state[STATE_HEAD : STATE_HEAD + 8].view(np.uint32)[:] = self.streams, count
        at = STATE_HEAD + 8
        column = 0
        for header, size in [(b"", self.cell), *self._parts]:
            state[at : at + len(header)] = np.frombuffer(header, np.uint8)
            at += len(header)
            for part in parts:
                n = len(part) * size
                state[at : at + n].reshape(len(part), size)[:] = part[:, column : column + size]
                at += n
            column += size
        at += 4 * (self.streams - 1)
        state[at:] = fixed
        return state

    @property
    def _parts(self) -> list[tuple[bytes, int]]:
        """What follows the cells: headers, each with the bytes of a row behind it."""
        return [(np.array([0, self.layers], np.uint32).tobytes(), 0), *self.tensors]

    def _stream_of(self, state: Bytes) -> int:
        """Return the stream whose cells the state holds: the first that has any."""
        counts = state[STATE_HEAD + 4 : STATE_HEAD + 4 + 4 * self.streams].view(np.uint32)
        return int(np.argmax(counts != 0))

    def _cells_at(self, state: Bytes, count: int) -> int:
        """Return where the cells begin. Raises UnknownFormat, also for a state that is too short."""
        if len(state) < STATE_HEAD + 4 + 4 * self.streams + count * self.width + sum(len(header) for header, _ in self._parts):
            raise UnknownFormat(f"{len(state)} bytes are too few for {count} tokens")
        streams = int(state[STATE_HEAD : STATE_HEAD + 4].view(np.uint32)[0])
        stream = self._stream_of(state) if streams == self.streams else 0
        at = STATE_HEAD + 4 + 4 * stream
        if streams != self.streams or int(state[at : at + 4].view(np.uint32)[0]) != count:
            raise UnknownFormat(f"the state does not hold {count} cells in one of {self.streams} streams")
        return at + 4


def learn(state: Bytes, count: int, n_fixed: int) -> StateFormat:
    """Return the format of `state`, that of sequence 0 with `count` tokens, whose last `n_fixed` bytes cannot be cut.

    Raises UnknownFormat. What it returns has been tried: the state split and joined is the state again.
    """
    if n_fixed >= len(state) - STATE_HEAD:
        return StateFormat()
    for extension in _EXTENSIONS:
        try:
            found = _learn(state, count, n_fixed, _CELL + extension)
        except (UnknownFormat, IndexError, ValueError):
            continue
        rows, fixed = found.split(state, 0, count)  # a wrong guess does not come back as it was
        if len(fixed) == n_fixed and np.array_equal(found.join([rows], fixed), state):
            return found
    raise UnknownFormat("a saved state cannot be read token by token")


def _learn(state: Bytes, count: int, n_fixed: int, cell: int) -> StateFormat:
    streams = int(state[STATE_HEAD : STATE_HEAD + 4].view(np.uint32)[0])
    if not 0 < streams <= 1024:
        raise UnknownFormat("streams")
    found = StateFormat(bytes(state[:STATE_HEAD]), streams, cell)
    at = found._cells_at(state, count) + count * cell
    transposed, layers = (int(n) for n in state[at : at + 8].copy().view(np.uint32))
    if transposed or layers > 4096:
        raise UnknownFormat("values lie by column")
    at += 8
    tensors: list[tuple[bytes, int]] = []
    end = len(state) - n_fixed - 4 * (streams - 1 - found._stream_of(state))
    while at + _TENSOR <= end:
        header = bytes(state[at : at + _TENSOR])
        size = int.from_bytes(header[4:], "little")
        at += _TENSOR + count * size
        if size > 1 << 24 or at > end:
            break
        tensors.append((header, size))
    return dataclasses.replace(found, layers=layers, tensors=tuple(tensors))


def _order(cells: Rows) -> npt.NDArray[np.intp]:
    """Return the cells in the order of their tokens: by position, in a picture by row and column (llama_kv_cell_ext)."""
    if cells.shape[1] == _CELL:
        return np.argsort(_positions(cells))
    column, row = (cells[:, at : at + 4].copy().view(np.int32)[:, 0] for at in (8, 12))
    return np.lexsort((column, row, _positions(cells)))


def _has_picture(positions: npt.NDArray[np.int32]) -> bool:
    """Tell whether positions, in order, may be those of a prefix with pictures."""
    steps = np.diff(positions)
    return bool(positions[0] == 0 and (steps == 0).any())


def _positions(cells: Rows) -> npt.NDArray[np.int32]:
    positions: npt.NDArray[np.int32] = cells[:, :4].copy().view(np.int32)[:, 0]
    return positions
