"""The one thread that owns a context. A step reads as: take commands, plan, move, decode, sample, hand out."""

from __future__ import annotations

import dataclasses
import logging
import queue
import time
from collections.abc import Callable

import numpy as np

from locallab.engine.llama import NO_ROOM, Batch, Context, Model
from locallab.engine.request import Delivery, EngineStats, FinishReason, Listener, TokenEvent
from locallab.engine.sampler import Sampler
from locallab.engine.scheduler import Chunk, Copy, Move, Remove, Restore, Save, Scheduler
from locallab.engine.sequence import UNPLACED, Sequence
from locallab.errors import EngineClosed, EngineFailure

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Submit:
    sequence: Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Cancel:
    id: int


@dataclasses.dataclass(frozen=True, slots=True)
class Close:
    """End what runs at `deadline` (time.monotonic) at the latest, then stop."""

    deadline: float


Command = Submit | Cancel | Close


class Worker:
    """Runs steps until it is closed. Only `commands` and `stats` may be touched from other threads."""

    def __init__(
        self, model: Model, context: Context, scheduler: Scheduler, deliver: Delivery, ended: Callable[[], None]
    ) -> None:
        """`ended` is called in the worker's thread for each sequence that has come to its end."""
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._model = model
        self._context = context
        self._scheduler = scheduler
        self._deliver = deliver
        self._ended = ended
        self._batch = Batch(scheduler.limits.batch)
        self._sequences: dict[int, Sequence] = {}
        self._samplers: dict[int, Sampler] = {}
        self._events: list[tuple[Listener, TokenEvent]] = []
        self._deadline: float | None = None
        self._totals = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "steps": 0}

    def run(self) -> None:
        """Works until a Close command has been carried out. Every sequence gets its last event, whatever happens."""
        while self._take_commands():
            try:
                self._step()
            except EngineFailure as error:
                logger.error("%s; all running requests have failed", error)
                self._fail_all(error)
            except Exception as error:
                logger.exception("a step failed; all running requests have failed")
                self._fail_all(EngineFailure(f"internal error: {error}"))
        self._hand_out()

    def _take_commands(self) -> bool:
        """Carries out what other threads asked for; waits when there is nothing to compute. False: time to stop."""
        while True:
            try:
                idle = not self._sequences and self._deadline is None
                if idle:
                    self._hand_out()
                self._carry_out(self.commands.get(block=idle))
            except queue.Empty:
                break
        if self._deadline is None:
            return True
        if time.monotonic() >= self._deadline:
            for sequence in list(self._sequences.values()):
                self._end(sequence, "cancelled", error=EngineClosed("the engine was closed"))
        return bool(self._sequences)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Submit(sequence):
                self._begin(sequence)
            case Cancel(id):
                if id in self._sequences:
                    self._end(self._sequences[id], "cancelled")
            case Close(deadline):
                self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)

    def _begin(self, sequence: Sequence) -> None:
        self._sequences[sequence.id] = sequence
        self._scheduler.submit(sequence)
        if sequence.limit <= sequence.n_prompt:
            self._end(sequence, "length")

    def _step(self) -> None:
        plan = self._scheduler.plan()
        for move in plan.moves:
            self._move(move)
        for batch in plan.batches:
            chunks = [chunk for chunk in batch if chunk.sequence.slot != UNPLACED]
            if chunks and not self._compute(chunks):
                return
        self._totals["steps"] += 1

    def _compute(self, chunks: list[Chunk]) -> bool:
        """Computes one batch and what follows from it. False: there was no room, the rest of the plan is void."""
        outputs = self._fill(chunks)
        self._hand_out()  # the event loop works on these while llama.cpp computes and the interpreter is free
        began = time.perf_counter()
        if self._context.decode(self._batch) == NO_ROOM:
            if not self._scheduler.relieve():
                raise EngineFailure("llama.cpp finds no KV room for a single sequence")
            return False
        seconds = time.perf_counter() - began
        n_answers = sum(chunk.is_answer for chunk in chunks)
        self._scheduler.costs.observe(n_answers, sum(chunk.count for chunk in chunks) - n_answers, seconds)
        self._scheduler.commit(chunks)
        self._advance([chunk for chunk in chunks if chunk.last], outputs)
        return True

    def _move(self, move: Move) -> None:
        match move:
            case Copy(source, target, length):
                self._context.copy(source, target, length)
            case Remove(sequence):
                self._context.remove(sequence)
            case Save(sequence, tokens):
                self._scheduler.host.put(tokens, self._context.save(sequence))
            case Restore():
                self._restore(move)

    def _restore(self, move: Restore) -> None:
        slot = move.sequence.slot
        if self._context.restore(move.stored.state, slot):
            if move.length < len(move.stored.tokens):
                self._context.remove(slot, move.length)
            return
        logger.warning("a prefix of %d tokens could not be put back from host RAM", move.length)
        self._scheduler.host.drop(move.stored)
        self._scheduler.unrestored(move.sequence)

    def _fill(self, chunks: list[Chunk]) -> list[int]:
        """Fills the batch; returns the entries whose logits are wanted: the last one of each chunk that catches up."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        outputs: list[int] = []
        for chunk in chunks:
            end = chunk.start + chunk.count
            tokens += chunk.sequence.tokens[chunk.start : end]
            positions += range(chunk.start, end)
            slots += [chunk.sequence.slot] * chunk.count
            outputs += [0] * (chunk.count - 1) + [int(chunk.last)]
        self._batch.fill(tokens, positions, slots, outputs)
        return [i for i, wanted in enumerate(outputs) if wanted]

    def _advance(self, chunks: list[Chunk], outputs: list[int]) -> None:
        """Draws a token for each sequence that has caught up, and says what it means for the request."""
        if not chunks:
            return
        logits = self._context.logits()
        for row, (chunk, output) in enumerate(zip(chunks, outputs, strict=True)):
            sequence = chunk.sequence
            sampler = self._samplers.get(sequence.id) or self._sampler(sequence)
            if sampler.is_plain:
                if sampler.banned:
                    logits[row, sampler.banned] = -np.inf
                token = int(logits[row].argmax())
            else:
                token = sampler.sample(self._context, output)
            self._emit(sequence, token)

    def _sampler(self, sequence: Sequence) -> Sampler:
        """Made with the first token, so that what never gets that far costs nothing."""
        sampler = self._samplers[sequence.id] = Sampler(sequence.params, self._model, self._context.n_ctx)
        sampler.accept(sequence.tokens)
        self._totals["prompt_tokens"] += sequence.n_prompt
        self._totals["cached_tokens"] += sequence.cached
        return sampler

    def _emit(self, sequence: Sequence, token: int) -> None:
        self._totals["completion_tokens"] += 1
        self._scheduler.append(sequence, token)
        ends = token in sequence.params.stop_token_ids or (token in self._model.end_tokens and not sequence.params.ignore_eos)
        text = "" if ends else sequence.text.feed(self._model.piece(token))
        if ends or sequence.text.stopped:
            self._end(sequence, "stop", text, token)
        elif len(sequence.tokens) >= sequence.limit:
            self._end(sequence, "length", text, token)
        else:
            self._events.append((sequence.listener, TokenEvent(text, (token,))))

    def _end(
        self, sequence: Sequence, reason: FinishReason, text: str = "", token: int | None = None, error: Exception | None = None
    ) -> None:
        """A sequence has ended, wherever it was; its room is free with the next step."""
        self._scheduler.finish(sequence)
        self._forget(sequence)
        text += sequence.text.finish()
        tokens = () if token is None else (token,)
        self._events.append((sequence.listener, TokenEvent(text, tokens, reason, sequence.usage, error)))

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[sequence.id]
        self._ended()
        sampler = self._samplers.pop(sequence.id, None)
        if sampler:
            sampler.close()

    def _fail_all(self, error: EngineFailure) -> None:
        """The context's content is unknown: every request fails, the pool starts empty, the engine goes on."""
        for sequence in list(self._sequences.values()):
            self._forget(sequence)
            event = TokenEvent(sequence.text.finish(), (), "error", sequence.usage, error)
            self._events.append((sequence.listener, event))
        self._scheduler.reset()
        self._context.clear()
        self._hand_out()

    def _hand_out(self) -> None:
        if self._events:
            events, self._events = self._events, []
            try:
                self._deliver(events)
            except Exception:
                logger.exception("handing out %d events failed", len(events))

    def stats(self) -> EngineStats:
        """A snapshot; each figure is read by itself, so they may be a step apart."""
        scheduler = self._scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_used=scheduler.cache.used,
            kv_total=scheduler.limits.cells,
            cached=scheduler.cache.cold_cells,
            preemptions=scheduler.preemptions,
            **self._totals,
        )
