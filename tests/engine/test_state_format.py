from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from locallab.engine import llama
from locallab.engine.batch import Batch
from locallab.engine.context import Context
from locallab.engine.state_format import Bytes, StateFormat, UnknownFormat, learn
from tests.support import tiny_gguf

# States as llama_kv_cache::state_write documents them, of any shape


@dataclasses.dataclass(frozen=True)
class Shape:
    """`rows`: bytes of a row of each tensor, keys first; values may be missing. `extension`: more positions of a cell."""

    streams: int
    extension: int
    rows: tuple[int, ...]
    fixed: bytes

    def state(self, count: int, *, stream: int = 0, order: list[int] | None = None, head: bytes = b"ggsq\0\0\0\0") -> Bytes:
        """Return the state of `count` tokens whose cells lie in `stream`, in `order`."""
        order = list(range(count)) if order is None else order
        cells = b"".join(_int(at) + _int(1) + _content(at, 0, self.extension) + _int(0) for at in order)
        tensors = b"".join(
            _int(1) + size.to_bytes(8, "little") + b"".join(_content(at, 1 + i, size) for at in order)
            for i, size in enumerate(self.rows)
        )
        empty = _int(0)
        base = _int(count) + cells + _int(0) + _int(len(self.rows)) + tensors
        whole = head + _int(self.streams) + empty * stream + base + empty * (self.streams - 1 - stream) + self.fixed
        return np.frombuffer(whole, np.uint8)


def _int(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _content(at: int, tensor: int, size: int) -> bytes:
    """Return bytes that belong to one token and one tensor."""
    return bytes((at * 37 + tensor * 101 + i * 7) % 251 for i in range(size))


shapes = st.builds(
    Shape,
    streams=st.integers(1, 4),
    extension=st.sampled_from([0, 8, 12]),
    rows=st.lists(st.sampled_from([2, 18, 34, 64]), min_size=1, max_size=5).map(tuple),
    fixed=st.binary(max_size=40),
)
counts = st.integers(2, 12)


def learnt(shape: Shape, count: int = 6) -> StateFormat:
    return learn(shape.state(count), count, len(shape.fixed))


@given(shapes, counts, st.data())
def test_a_state_split_and_joined_is_the_state_again(shape: Shape, count: int, data: st.DataObject) -> None:
    """In the first stream, wherever it lay, and in the order of its tokens, whatever the order of its cells."""
    stream = data.draw(st.integers(0, shape.streams - 1))
    order = data.draw(st.permutations(range(count)))
    found = learnt(shape)
    rows, fixed = found.split(shape.state(count, stream=stream, order=order), 0, count)
    assert rows.shape == (count, found.width)
    assert bytes(fixed) == shape.fixed
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=3)))
    parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
    assert np.array_equal(found.join(parts, fixed), shape.state(count))


@given(shapes, counts, st.data())
def test_a_part_joined_is_the_state_of_that_part(shape: Shape, count: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, count))
    found = learnt(shape)
    rows, fixed = found.split(shape.state(count), 0, count)
    assert np.array_equal(found.join([rows[:length]], fixed), shape.state(length))


@given(shapes, counts, st.data())
def test_the_last_rows_can_be_had_alone(shape: Shape, count: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, count))
    order = data.draw(st.permutations(range(count)))
    found = learnt(shape)
    state = shape.state(count, order=order)
    assert np.array_equal(found.split(state, start, count)[0], found.split(state, 0, count)[0][start:])


@given(shapes, counts)
def test_rows_are_copies(shape: Shape, count: int) -> None:
    found = learnt(shape)
    state = shape.state(count).copy()
    rows, fixed = found.split(state, 0, count)
    state[:] = 0
    assert np.array_equal(found.join([rows], fixed), shape.state(count))


@given(st.binary(max_size=200), st.integers(1, 6))
def test_a_state_without_rows_is_kept_whole(data: bytes, count: int) -> None:
    state = np.frombuffer(b"ggsq\0\0\0\0" + data, np.uint8)
    found = learn(state, count, len(data))
    rows, fixed = found.split(state, 0, count)
    assert (found.width, rows.shape) == (0, (count, 0))
    assert np.array_equal(found.join([rows], fixed), state)


@given(shapes, counts, st.data())
def test_damaged_bytes_are_refused_or_are_content(shape: Shape, count: int, data: st.DataObject) -> None:
    """A state says nothing of its content; but for that, what is damaged is not what is expected."""
    found = learnt(shape)
    state = bytearray(shape.state(count).tobytes())
    at = data.draw(st.integers(0, len(state) - 1))
    state[at] ^= data.draw(st.integers(1, 255))
    del state[data.draw(st.integers(len(state) - len(shape.fixed) - 8, len(state))) :]
    with contextlib.suppress(UnknownFormat):
        learn(np.frombuffer(state, np.uint8), count, len(shape.fixed))
    with contextlib.suppress(UnknownFormat):
        rows, fixed = found.split(np.frombuffer(state, np.uint8), 0, count)
        assert rows.shape == (count, found.width) and len(fixed) <= len(shape.fixed)


@given(shapes, counts, st.data())
def test_what_is_cut_off_is_refused(shape: Shape, count: int, data: st.DataObject) -> None:
    state = shape.state(count)
    length = data.draw(st.integers(0, len(state) - len(shape.fixed) - 4 * (shape.streams - 1) - 1))
    with pytest.raises(UnknownFormat):
        learnt(shape).split(state[:length], 0, count)


@given(shapes, shapes, counts)
def test_the_state_of_another_context_is_refused(shape: Shape, other: Shape, count: int) -> None:
    assume((shape.streams, shape.extension, shape.rows) != (other.streams, other.extension, other.rows))
    assume(shape.rows != other.rows[: len(shape.rows)])
    with pytest.raises(UnknownFormat):
        learnt(shape).split(other.state(count), 0, count)


@pytest.mark.parametrize(
    "positions", [[0, 1, 3], [1, 2, 3], [0, 1, 1], [0, 0, 0]], ids=["a hole", "no beginning", "one twice", "all the first"]
)
def test_what_is_no_prefix_is_refused(positions: list[int]) -> None:
    shape = Shape(2, 0, (8, 8), b"")
    with pytest.raises(UnknownFormat, match="not those of a prefix"):
        learnt(shape).split(shape.state(3, order=positions), 0, 3)


def test_another_number_of_tokens_is_refused() -> None:
    shape = Shape(2, 0, (8, 8), b"")
    with pytest.raises(UnknownFormat, match="does not hold 3 cells in one of 2 streams"):
        learnt(shape).split(shape.state(4), 0, 3)


@given(st.binary(min_size=49, max_size=300), st.integers(1, 8), st.integers(0, 40))
def test_foreign_bytes_are_refused(data: bytes, count: int, n_fixed: int) -> None:
    with pytest.raises(UnknownFormat):
        learn(np.frombuffer(data, np.uint8), count, n_fixed)


def test_values_by_column_are_refused() -> None:
    """As a cache without flash attention has them."""
    shape = Shape(1, 0, (8, 8), b"")
    state = shape.state(4).copy()
    state[8 + 8 + 4 * 12] = 1
    with pytest.raises(UnknownFormat, match="token by token"):
        learn(state, 4, 0)


# States of real contexts


CELLS, SEQUENCES = 1024, 4


class Live:
    """A context and what is needed to compute with it."""

    def __init__(self, model: llama.Model, unified: bool) -> None:
        self.memory = model.memory
        self.cuts = model.memory == "attention"
        self.context = Context(model, n_ctx=CELLS, n_batch=64, n_sequences=SEQUENCES, threads=1, kv_type="f16", unified=unified)
        self._batch = Batch(64)
        self.compute(0, WORDS)
        self.context.learn_format(len(WORDS), self.cuts)
        self.context.clear()

    def compute(self, slot: int, tokens: list[int], start: int = 0) -> npt.NDArray[np.float32]:
        """Compute tokens at the positions from `start` on, and return the logits behind the last."""
        n = len(tokens)
        self._batch.fill(tokens, range(start, start + n), [slot] * n, [0] * (n - 1) + [1])
        assert self.context.decode(self._batch) == 0
        return self.context.logits()[0].copy()


WORDS = [tiny_gguf.FIRST_PLAIN + i * i % 250 for i in range(40)]
MORE = [tiny_gguf.FIRST_PLAIN + i * 7 % 250 for i in range(6)]
NOISE = 0.25
"""Cells that lie elsewhere are summed up in another order; a wrong one changes logits by about 1."""


@pytest.fixture(scope="module", params=tiny_gguf.ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[llama.Model]:
    path = tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf", request.param)
    loaded = llama.Model(path, 0)
    yield loaded
    loaded.close()


@pytest.fixture(params=[True, False], ids=["unified", "streams"])
def live(request: pytest.FixtureRequest, model: llama.Model) -> Iterator[Live]:
    found = Live(model, request.param)
    yield found
    found.context.close()


def test_a_restored_sequence_goes_on_as_the_saved_one_does(live: Live) -> None:
    live.compute(3, MORE)
    live.compute(0, WORDS)
    rows, fixed = live.context.save(0, 0, len(WORDS))
    assert live.context.restore(1, [rows[:7], rows[7:]], fixed, len(WORDS))
    expected = live.compute(0, MORE, len(WORDS))
    assert np.abs(live.compute(1, MORE, len(WORDS)) - expected).max() < NOISE


def test_wrong_rows_would_show(live: Live) -> None:
    live.compute(0, WORDS)
    live.compute(2, WORDS[::-1])
    other, other_fixed = live.context.save(2, 0, len(WORDS))
    assert live.context.restore(1, [other], other_fixed, len(WORDS))
    expected = live.compute(0, MORE, len(WORDS))
    assert np.abs(live.compute(1, MORE, len(WORDS)) - expected).max() > 2 * NOISE


def test_a_prefix_has_the_rows_that_it_had_alone(live: Live) -> None:
    """In cells that others have left, between those of others."""
    live.compute(1, MORE)
    live.compute(2, MORE)
    live.compute(0, WORDS[:8])
    live.context.remove(1)
    live.compute(0, WORDS[8:20], 8)
    alone, _ = live.context.save(0, 0, 20)
    live.context.remove(2)
    live.compute(0, WORDS[20:], 20)
    rows, _ = live.context.save(0, 0, len(WORDS))
    assert np.array_equal(rows[:20], alone)
    assert np.array_equal(live.context.save(0, 20, len(WORDS))[0], rows[20:])


def test_a_part_of_a_state_is_restored_only_where_that_can_be_cut(live: Live) -> None:
    if live.memory == "hybrid":
        pytest.skip("of a hybrid memory llama.cpp tells the last position of the part that ends first")
    live.compute(0, WORDS)
    rows, fixed = live.context.save(0, 0, len(WORDS))
    assert live.context.restore(1, [rows[:25]], fixed, 25) is live.cuts
    if live.cuts:
        expected = live.compute(2, [*WORDS[:25], *MORE])
        assert np.abs(live.compute(1, MORE, 25) - expected).max() < NOISE
    else:
        assert live.context.last_position(1) == -1


def test_a_restore_that_fails_leaves_nothing(live: Live) -> None:
    live.compute(0, WORDS)
    rows, fixed = live.context.save(0, 0, len(WORDS))
    assert not live.context.restore(1, [rows], fixed, len(WORDS) + 1)
    assert live.context.last_position(1) == -1
    state = live.context.format.join([rows], fixed)
    live.context.format = StateFormat()
    assert not live.context.restore(1, [], state[: len(state) // 2], len(WORDS))
    assert live.context.last_position(1) == -1


def test_a_moved_sequence_goes_on(live: Live) -> None:
    live.compute(0, WORDS)
    rows, _ = live.context.save(0, 0, len(WORDS))
    assert live.context.move(0, 2, len(WORDS))
    assert live.context.last_position(0) == -1
    again, _ = live.context.save(2, 0, len(WORDS))
    cell = live.context.format.cell
    assert np.array_equal(again[:, cell:], rows[:, cell:]), "but for the sequence's id"
    expected = live.compute(1, [*WORDS, *MORE])
    assert np.abs(live.compute(2, MORE, len(WORDS)) - expected).max() < NOISE
