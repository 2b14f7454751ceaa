"""Times of bare llama_decode and of state IO in both KV layouts. What is compared takes turns."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from gpulib.report import COMPUTE, DECODE, GAP, POOL, PREFIX, STREAMS, Row
from locallab.engine import llama
from locallab.engine.batch import Batch
from locallab.engine.context import Context
from locallab.engine.state_format import Bytes, Rows
from locallab.errors import EngineFailure
from locallab.memory_model import STEP, whole_cells

# isort: split
import llama_cpp  # behind locallab.engine.llama, which sets how its threads wait

SETTLE, TIMED = 2, 3
"""Steps of a turn: the first ones build the graph, on a GPU they record it too."""

LEAST_TURNS, MOST_TURNS = 2, 10

ON_DEVICE = 2
"""LLAMA_STATE_SEQ_FLAGS_ON_DEVICE."""

Turn = Callable[[], list[float]]


class OutOfTime(Exception):
    """The whole run may take no longer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: decode steps of so many `sequences` at so many tokens (`depths`), a `prompt` beside `foreign` sequences
    of the greatest depth, moves of `states` of so many tokens; within `seconds` in all, `row_seconds` for a row."""

    sequences: tuple[int, ...]
    depths: tuple[int, ...]
    prompt: int
    foreign: int
    states: tuple[int, ...]
    seconds: float
    row_seconds: float


FULL = Plan((1, 8, 16, 32), (100, 400, 900), STEP, 7, (900, 4000), seconds=540, row_seconds=3)
QUICK = Plan((1, 4), (100,), 64, 3, (128,), seconds=28, row_seconds=0.5)


class Held:
    """A context whose sequences are given prefixes of one text, which `learn` computes once."""

    def __init__(self, model: llama.Model, *, ids: int, cells: int, unified: bool, threads: int) -> None:
        """Allocate `cells` for each of `ids` sequences, in one pool or in streams. Raises ModelLoadError."""
        self.context = Context(
            model, n_ctx=ids * cells, n_batch=STEP, n_sequences=ids, threads=threads, kv_type="f16", unified=unified
        )
        self._batch = Batch(max(STEP, ids))
        self._cuts = not (model.keeps_state or model.sliding_window)
        self._tokens = (7 * np.arange(ids * cells) + 5) % model.n_vocab
        self._states: dict[int, tuple[Rows, Bytes]] = {}

    def learn(self, lengths: Sequence[int], check: Callable[[], None]) -> dict[int, float]:
        """Keep the states of these prefixes, shortest first; return the seconds that computing each took. `check` may raise."""
        self.context.clear()
        self.prefill(0, 0, 1)  # warms up
        self.context.clear()
        seconds, done, took = {}, 0, 0.0
        for length in lengths:
            for start in range(done, length, STEP):
                check()
                took += self.prefill(0, start, min(start + STEP, length))
            done, seconds[length] = length, took
            self.context.learn_format(length, self._cuts)
            self._states[length] = self.context.save(0, 0, length)
        return seconds

    def hold(self, ids: Sequence[int], tokens: int, *, shared: bool = False) -> None:
        """Give these sequences, and no other, the prefix of so many tokens: cells of their own, or `shared` ones."""
        self.context.clear()
        for sequence in ids[:1] if shared else ids:
            self.restore(sequence, tokens)
        for sequence in ids[1:] if shared else ():
            self.context.copy(ids[0], sequence, 0, tokens)

    def restore(self, sequence: int, tokens: int) -> None:
        """Put the prefix of so many tokens into an empty sequence. Raises EngineFailure."""
        rows, fixed = self._states[tokens]
        if not self.context.restore(sequence, [rows], fixed, tokens):
            raise EngineFailure(f"a state of {tokens} tokens cannot be restored")

    def prefill(self, sequence: int, start: int, end: int) -> float:
        """Compute tokens [start, end) of the text in a sequence that ends before them; return the seconds."""
        count = end - start
        outputs = [*[0] * (count - 1), 1]
        return self._decode(self._tokens[start:end].tolist(), list(range(start, end)), [sequence] * count, outputs)

    def step(self, ids: Sequence[int], position: int) -> float:
        """Compute one more token of each sequence; return the seconds."""
        n = len(ids)
        return self._decode([int(self._tokens[position])] * n, [position] * n, ids, [1] * n)

    def close(self) -> None:
        """Free the context."""
        self.context.close()

    def _decode(self, tokens: Sequence[int], positions: Sequence[int], ids: Sequence[int], outputs: Sequence[int]) -> float:
        self._batch.fill(tokens, positions, ids, outputs)
        start = time.perf_counter()
        if self.context.decode(self._batch):
            raise EngineFailure("the KV cache has no room")
        return time.perf_counter() - start


class Measurement:
    """Measures a plan, and keeps `rows` of what it has so far."""

    def __init__(self, model: llama.Model, plan: Plan, threads: int, started: float) -> None:
        """Count the plan's seconds from `started`, a time.monotonic()."""
        self._model, self._plan, self._threads = model, plan, threads
        self._deadline = started + plan.seconds
        self.rows: list[Row] = []

    def run(self) -> None:
        """Measure everything. Raises OutOfTime, EngineFailure, ModelLoadError, UnknownFormat."""
        plan = self._plan
        ids = max(*plan.sequences, plan.foreign) + 1
        with self._pair(ids, max(plan.depths[-1] + SETTLE + TIMED, plan.prompt)) as (pool, streams):
            for held in (pool, streams):
                held.learn(plan.depths, self._check)
            self._decode_steps(pool, streams)
            self._prefill(pool, streams)
        with self._pair(2, plan.states[-1] + 2) as (pool, streams):
            self._states(pool, streams)

    def _decode_steps(self, pool: Held, streams: Held) -> None:
        for n in self._plan.sequences:
            ids = range(n)
            split = [*range(n // 2), *range(n // 2 + 1, n + 1)]
            for tokens in self._plan.depths:
                turns: dict[str, Turn] = {
                    POOL: partial(_steps, pool, ids, tokens),
                    STREAMS: partial(_steps, streams, ids, tokens),
                }
                if n > 1:
                    turns[PREFIX] = partial(_steps, pool, ids, tokens, shared=True)
                    turns[GAP] = partial(_steps, streams, split, tokens)
                self._row(DECODE, n, tokens, turns)

    def _prefill(self, pool: Held, streams: Held) -> None:
        depth, prompt = self._plan.depths[-1], self._plan.prompt
        for foreign in (0, self._plan.foreign):
            what = f"prefill beside {foreign} x {depth}" if foreign else "prefill alone"
            turns = {
                column: partial(_prefill, held, prompt, foreign, depth) for column, held in ((POOL, pool), (STREAMS, streams))
            }
            self._row(what, 1, prompt, turns)

    def _states(self, pool: Held, streams: Held) -> None:
        layouts = {POOL: pool, STREAMS: streams}
        seconds = {column: held.learn(self._plan.states, self._check) for column, held in layouts.items()}
        for tokens in self._plan.states:
            self.rows.append(Row(COMPUTE, 1, tokens, {column: 1000 * took[tokens] for column, took in seconds.items()}))
            for what, action in (("save", _save), ("restore", _restore)):
                self._row(what, 1, tokens, {column: partial(action, held, tokens) for column, held in layouts.items()})
            for which, what in enumerate(("save on the device", "restore from the device")):
                turns = {column: partial(_on_device, held, tokens, which) for column, held in layouts.items()}
                self._row(what, 1, tokens, turns)
            self._row("move", 1, tokens, {STREAMS: partial(_move, streams, tokens)})
            self._row("seq_cp", 1, tokens, {POOL: partial(_share, pool, tokens), STREAMS: partial(_copy, streams, tokens)})

    def _row(self, what: str, sequences: int, tokens: int, turns: Mapping[str, Turn]) -> None:
        """Let the layouts take turns until the time for a row is over; keep the medians."""
        seconds: dict[str, list[float]] = {column: [] for column in turns}
        end = time.monotonic() + self._plan.row_seconds
        for turn in range(MOST_TURNS):
            if turn >= LEAST_TURNS and time.monotonic() > end:
                break
            for column, measure in turns.items():
                self._check()
                seconds[column] += measure()
        ms = {column: 1000 * statistics.median(found) for column, found in seconds.items()}
        self.rows.append(Row(what, sequences, tokens, ms))

    def _check(self) -> None:
        if time.monotonic() > self._deadline:
            raise OutOfTime

    @contextlib.contextmanager
    def _pair(self, ids: int, tokens: int) -> Iterator[tuple[Held, Held]]:
        """Yield a pool and streams for so many sequences of up to `tokens`."""
        allocate = partial(Held, self._model, ids=ids, cells=whole_cells(tokens), threads=self._threads)
        with contextlib.closing(allocate(unified=True)) as pool, contextlib.closing(allocate(unified=False)) as streams:
            yield pool, streams


def build() -> str:
    """Return which llama.cpp this is: versions, commit, and what it was compiled for."""
    version, commit = llama_cpp.llama_cpp._lib.ggml_version, llama_cpp.llama_cpp._lib.ggml_commit
    version.restype = commit.restype = ctypes.c_char_p
    ggml = f"ggml {version().decode()} ({commit().decode()})"
    return f"llama-cpp-python {llama_cpp.__version__}, {ggml}, {llama.system_info()}"


def _steps(held: Held, ids: Sequence[int], tokens: int, shared: bool = False) -> list[float]:
    held.hold(ids, tokens, shared=shared)
    return [held.step(ids, tokens + at) for at in range(SETTLE + TIMED)][SETTLE:]


def _prefill(held: Held, prompt: int, foreign: int, depth: int) -> list[float]:
    held.hold(range(1, foreign + 1), depth)
    return [held.prefill(0, 0, prompt)]


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _save(held: Held, tokens: int) -> list[float]:
    held.hold([0], tokens)
    return [_seconds(lambda: held.context.save(0, 0, tokens))]


def _restore(held: Held, tokens: int) -> list[float]:
    held.context.clear()
    return [_seconds(lambda: held.restore(1, tokens))]


def _move(held: Held, tokens: int) -> list[float]:
    held.hold([0], tokens)
    start = time.perf_counter()
    if not held.context.move(0, 1, tokens):
        raise EngineFailure(f"a sequence of {tokens} tokens cannot be moved")
    return [time.perf_counter() - start]


def _share(held: Held, tokens: int) -> list[float]:
    held.hold([0], tokens)
    return [_seconds(lambda: held.context.copy(0, 1, 0, tokens))]


def _copy(held: Held, tokens: int) -> list[float]:
    """Copy between streams: the next step does it, and copies the whole stream."""
    held.hold([0], tokens)
    start = time.perf_counter()
    held.context.copy(0, 1, -1, -1)
    held.step([1], tokens)
    both = time.perf_counter() - start
    return [max(0.0, both - held.step([1], tokens + 1))]


def _on_device(held: Held, tokens: int, which: int) -> list[float]:
    """Save with LLAMA_STATE_SEQ_FLAGS_ON_DEVICE and restore; return the seconds of the first (0) or the second (1)."""
    held.hold([0], tokens)
    context = held.context.handle
    state = (ctypes.c_uint8 * llama_cpp.llama_state_seq_get_size_ext(context, 0, ON_DEVICE))()
    save = _seconds(lambda: llama_cpp.llama_state_seq_get_data_ext(context, state, len(state), 0, ON_DEVICE))
    restore = _seconds(lambda: llama_cpp.llama_state_seq_set_data_ext(context, state, len(state), 1, ON_DEVICE))
    if held.context.last_position(1) != tokens - 1:
        raise EngineFailure(f"a state of {tokens} tokens cannot be restored on the device")
    return [(save, restore)[which]]
