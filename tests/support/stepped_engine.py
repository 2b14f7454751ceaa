"""A real engine on a tiny model, stepped by hand, whose context fails to save or to restore when it is told to."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import llama_cpp
import numpy as np

from locallab.engine import LOCAL, Caller, SamplingParams, TextEngine, TokenEvent, llama, text_engine
from locallab.engine.adapters import AdapterFile
from locallab.engine.batch import Batch
from locallab.engine.context import Context
from locallab.engine.costs import StepCosts
from locallab.engine.follower import Follower
from locallab.engine.limits import Limits
from locallab.engine.logprobs import Logprobs
from locallab.engine.request import TokenLogprob
from locallab.engine.scheduler import Scheduler
from locallab.engine.state_format import Bytes
from locallab.errors import EngineFailure
from locallab.memory_model import STEP, whole_cells
from locallab.settings import EngineSettings
from tests.support.live_engine import TIE

FAULTS = ("a state cannot be read", "a state cannot be put back", "nothing is put back", "a part is put back")
"""The last two of a call that says that it has worked. A state that cannot be cut is lost as a whole."""

_SET = llama_cpp.llama_state_seq_set_data

MOST_TOKENS = 32
"""Longest answer that `check_answer` can compare."""

PIECE = 32
"""Tokens that `check_answer` computes at once, fewer than llama.cpp's tile of attention."""


class FaultyContext(Context):
    """A context in which llama.cpp's next saves, restores and moves of a state fail as `faults` say: each fault once.

    `batches` are the tokens of each sequence in the batches that it has computed.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.faults: list[str] = []
        self.batches: list[dict[int, int]] = []

    def decode(self, batch: Batch) -> int:
        self.batches.append(collections.Counter(batch._sequences[: batch.raw.n_tokens].tolist()))
        return super().decode(batch)

    def _state(self, sequence: int) -> Bytes:
        if self._next(FAULTS[:1]):
            with mock.patch.object(llama_cpp, "llama_state_seq_get_data", return_value=0):
                return super()._state(sequence)
        return super()._state(sequence)

    def _read_state(self, sequence: int, state: Bytes, end: int) -> bool:
        if fault := self._next(FAULTS[1:]):
            with mock.patch.object(llama_cpp, "llama_state_seq_set_data", functools.partial(self._fail, fault)):
                return super()._read_state(sequence, state, end)
        assert super()._read_state(sequence, state, end), f"{end} tokens could not be put back"
        return True

    def _next(self, kinds: Sequence[str]) -> str | None:
        fault = next((fault for fault in self.faults if fault in kinds), None)
        if fault:
            self.faults.remove(fault)
        return fault

    def _fail(self, fault: str, context: int, data: object, size: int, sequence: int) -> int:
        """Stand in for llama_state_seq_set_data."""
        if fault == "a part is put back":
            _SET(context, data, size, sequence)
            with contextlib.suppress(EngineFailure):
                self.remove(sequence, self.last_position(sequence) // 2)
                return size
        self.remove(sequence)
        return 0 if fault == "a state cannot be put back" else size


@dataclasses.dataclass(eq=False)
class Request:
    """One greedy request, and what came of it."""

    id: int
    prompt: list[int]
    wanted: int
    events: list[TokenEvent] = dataclasses.field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [token for event in self.events for token in event.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [each for event in self.events for each in event.logprobs]

    @property
    def last(self) -> TokenEvent | None:
        return next((event for event in self.events if event.finish_reason), None)


class SteppedEngine(TextEngine):
    """An engine without a thread of its own: each `step` runs one of the worker's. A token costs a millisecond and moving one
    a hundredth of that, whatever the machine, so that the same requests make the same steps. A state that cannot be cut is
    saved every `snapshot_every` tokens, if there is room for it."""

    def __init__(
        self, path: Path, *, snapshot_every: int = 64, adapters: Sequence[AdapterFile] = (), **settings: object
    ) -> None:
        defaults = {"context": 256, "kv_tokens": 256, "parallel": 4, "threads": 1, "gpu_layers": 0, "batch": PIECE}
        self._snapshot_every = snapshot_every
        with mock.patch.multiple(text_engine, Context=self._make_context, Scheduler=self._make_scheduler):
            super().__init__(path, EngineSettings(**{**defaults, **settings}), adapters=adapters)
        self.context.batches.clear()

    @property
    def limits(self) -> Limits:
        return self._worker._scheduler.limits

    def ask(
        self,
        prompt: Sequence[int],
        wanted: int,
        boundaries: Sequence[int] = (),
        *,
        urgent: bool = False,
        scored: bool = False,
        lora: tuple[tuple[int | str, float], ...] | None = None,
        caller: Caller = LOCAL,
    ) -> Request:
        """Submit a request for exactly `wanted` tokens. `scored`: with the log probabilities of the prompt."""
        request = Request(-1, list(prompt), wanted)
        params = SamplingParams(
            temperature=0,
            ignore_eos=True,
            max_tokens=wanted,
            logprobs=0,
            prompt_logprobs=scored,
            boundaries=tuple(boundaries),
            lora=lora,
        )
        request.id = self.submit(prompt, params, request.events.append, urgent=urgent, caller=caller)
        return request

    def step(self) -> bool:
        """Run one step as the worker does; return False when there is nothing to do."""
        worker = self._worker
        while not worker.commands.empty():
            worker._carry_out(worker.commands.get())
        if worker._sequences:
            worker._step()
            self._check_context()
        return bool(worker._sequences)

    def drain(self, most: int = 10_000) -> None:
        """Step until all requests have ended."""
        for _ in range(most):
            if not self.step():
                self._worker._hand_out()
                return
        raise AssertionError(f"requests {sorted(self._worker._sequences)} starve")

    def rest(self) -> None:
        """Do what the worker does while it has no requests."""
        while not self._worker._sequences and self._worker._save_idle():
            pass

    def close(self, grace: float = 0.0) -> None:
        self._worker._masks.close()
        self._native.close()

    def _check_context(self) -> None:
        """Assert that the context has what the index says, and that no batch was computed in parts that harm a window."""
        self._worker._scheduler.cache.check_integrity()
        for slot, entry in self._worker._scheduler.cache._entries.items():
            assert self.context.last_position(slot) == entry.computed - 1, f"slot {slot} should have {entry.computed} tokens"
        for batch in self.context.batches if self._model.sliding_window else ():
            whole = sum(batch.values()) <= STEP and not (self.limits.even and len(set(batch.values())) > 1)
            assert whole, f"{batch} is computed in parts"
        self.context.batches.clear()

    def _make_context(self, *args: object, **kwargs: object) -> FaultyContext:
        self.context = FaultyContext(*args, **kwargs)
        return self.context

    def _make_scheduler(self, limits: Limits, _: StepCosts, follower: Follower | None) -> Scheduler:
        every = self._snapshot_every if limits.snapshot_every else 0
        scheduler = Scheduler(dataclasses.replace(limits, snapshot_every=every), _steady_costs(), follower)
        scheduler._chunking._tolerated = lambda _: limits.step_seconds  # whatever pace this machine has
        return scheduler

    def _work(self, path: Path) -> None:
        """Load, and leave the rest to whoever steps."""
        with contextlib.ExitStack() as native:
            self._worker = self._load(path, native)
            self._native = native.pop_all()
        self._loaded.set_result(None)


def _steady_costs() -> StepCosts:
    costs = StepCosts()
    costs._decode.coefficients = costs._prompt.coefficients = (0.0, 0.001, 0.0)
    costs.observe_move(1000, 0.01)
    costs.observe = costs.observe_move = costs.observe_switch = lambda *_: None
    return costs


def check_answer(model: llama.Model, request: Request, *, exact: bool) -> None:
    """Assert that a fresh context gives the answer of `request`: the likeliest tokens, or some that are no less likely than
    rounding explains, and log probabilities that differ by no more than that. `exact`: they are the same bit for bit."""
    answer, tokens = request.tokens, request.prompt + request.tokens[:-1]
    if not answer:
        return
    assert len(answer) == len(request.logprobs)
    rows = logits_of(model, tokens, len(answer))
    for at, (token, row, told) in enumerate(zip(answer, rows, request.logprobs, strict=True)):
        place = f"token {at} after a prompt of {len(request.prompt)}"
        tolerance = 0 if exact else TIE
        scorer = Logprobs(SamplingParams(logprobs=0), model)
        scorer.see(row)
        allowed = np.delete(row, list(model.end_tokens))
        assert allowed.max() - row[token] <= tolerance, f"{place} is {token}, {allowed.max() - row[token]} below the likeliest"
        off = abs(scorer.describe(row, token).logprob - told.logprob)
        assert off <= tolerance, f"{place} has a log probability that is {off} off"


def logits_of(model: llama.Model, tokens: list[int], count: int) -> np.ndarray:
    """Return the logits of the last `count` tokens, computed in a context that has never computed anything else."""
    context = Context(model, n_ctx=whole_cells(len(tokens)), n_batch=PIECE, n_sequences=MOST_TOKENS, threads=1, kv_type="f16")
    batch = Batch(PIECE)
    found: list[np.ndarray] = []
    try:
        for start in range(0, len(tokens), PIECE):
            piece = tokens[start : start + PIECE]
            wanted = [int(at >= len(tokens) - count) for at in range(start, start + len(piece))]
            batch.fill(piece, range(start, start + len(piece)), [0] * len(piece), wanted)
            assert context.decode(batch) == 0
            found += [row.copy() for row in context.logits()[: sum(wanted)]]
    finally:
        context.close()
    return np.array(found)
