"""The one thread that owns a context. A step reads as: take commands, plan, move, decode, accept, post."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import time
from collections.abc import Callable, Iterable

from locallab.engine.batches import Batches
from locallab.engine.caller import Caller
from locallab.engine.chunking import learn
from locallab.engine.commands import Cancel, Close, Command, Fail, Look, Share, Submit
from locallab.engine.context import NO_ROOM, Context, InvalidBatch
from locallab.engine.device_sampling import DeviceSamplers
from locallab.engine.disk_cache import DiskCache
from locallab.engine.draft_model import Drafter
from locallab.engine.grammar.guide import Masks
from locallab.engine.llama import Model
from locallab.engine.logprobs import Logits
from locallab.engine.media.encoder import Encoded, Encoder, Encodes
from locallab.engine.mover import Fetched, Lost, Mover, Written
from locallab.engine.post import Events, Heard, Post, deliver
from locallab.engine.prompt_events import PromptEvents
from locallab.engine.request import EngineStats, FinishReason, TokenEvent
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import UNPLACED, Sequence
from locallab.engine.step_plan import Chunk, device_plans
from locallab.engine.totals import Totals
from locallab.errors import EngineClosed, EngineFailure, InvalidField, engine_failure

logger = logging.getLogger(__name__)

READING = 0.05
"""Seconds to wait for another thread while there is nothing to compute before it has read from disk."""
FAILURES = 3
"""Failures in a row after which an engine takes itself for broken."""


class Worker:
    """Runs steps until it is closed. Only `commands`, `stats` and `totals` may be touched from other threads.

    What fails for one sequence ends that one alone. When a step fails as a whole (llama_decode above all), what the context
    holds is forgotten and computed again, now one sequence at a time, so that one which fails again can be told from others.
    """

    def __init__(
        self,
        context: Context,
        scheduler: Scheduler,
        model: Model,
        post: Post,
        ended: Callable[[Caller], None],
        disk: DiskCache | None = None,
        device: DeviceSamplers | None = None,
        drafter: Drafter | None = None,
        projector: Encodes | None = None,
    ) -> None:
        """`ended` is called in the worker's thread whenever a sequence of that caller has ended. With `device`, answers whose
        plan allows it are sampled there. `drafter` is the draft model, whose follower the scheduler has."""
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.totals = Totals()
        self._context = context
        self._scheduler = scheduler
        self._post = post
        self._ended = ended
        self._batches = Batches(scheduler.limits.batch, context.places)
        self._device = device
        self._masks = Masks(model.n_vocab)
        self._prompts = PromptEvents(scheduler.cache, model)
        self._sequences: dict[int, Sequence] = {}
        self._events: Events = []
        self._deadline: float | None = None
        self._mover = Mover(context, scheduler, self.commands, disk)
        self._drafter = drafter
        self._encoder = Encoder(projector, scheduler.limits.media_bytes, self.commands.put) if projector is not None else None
        self._failures = 0  # in a row
        self._alone: Sequence | None = None  # what is being computed, if nothing else is
        self._progress = False  # whether this step has computed anything

    def run(self) -> None:
        """Work until a Close command has been carried out. Raises what a fresh start does not help against; call `abandon`."""
        going = True
        while going:
            try:
                going = self._take_commands()
            except Exception as error:
                logger.exception("a command could not be carried out; all running requests have failed")
                self._count_failure(error)
                self._fail_all(engine_failure(error))
            else:
                self._try_step()
        self._close()

    def abandon(self, error: EngineFailure) -> None:
        """Send every listener its last event, those of requests that have not begun too: `run` has raised."""
        for sequence in list(self._sequences.values()):
            self._forget(sequence, "error", error=error)
        with contextlib.suppress(queue.Empty):
            while True:
                command = self.commands.get_nowait()
                if isinstance(command, Submit):
                    self._sequences[command.sequence.id] = command.sequence
                    self._forget(command.sequence, "error", error=error)
        self._close()

    def _close(self) -> None:
        self._hand_out()
        self._masks.close()
        if self._encoder is not None:
            self._encoder.close()

    def stats(self) -> EngineStats:
        """Return a snapshot; each figure is read by itself, so they may be a step apart."""
        return self.totals.stats(self._scheduler)

    def _take_commands(self) -> bool:
        """Carry out what other threads asked for; wait while there is nothing to compute. False: time to stop."""
        while True:
            try:
                idle = not self._sequences and self._deadline is None
                if idle:
                    self._hand_out()
                    idle = not self._save_idle()
                wait = READING if self._scheduler.idle else 0.0
                self._carry_out(self.commands.get(timeout=wait) if wait and not idle else self.commands.get(block=idle))
            except queue.Empty:
                break
        if self._deadline is None:
            return True
        if time.monotonic() >= self._deadline:
            for sequence in list(self._sequences.values()):
                self._end(sequence, "cancelled", error=EngineClosed("the engine was closed"))
        return bool(self._sequences)

    def _save_idle(self) -> bool:
        """Save a finished sequence while nobody waits; return False when there is none to save."""
        if (save := self._scheduler.saving.next()) is not None:
            self._mover.save(save)
        return save is not None

    def _carry_out(self, command: Command) -> None:
        match command:
            case Submit(sequence, overloaded):
                self._begin(sequence)
                if overloaded is not None and sequence in self._scheduler.waiting:
                    victim = self._scheduler.waiting.crowded_out(sequence, self._scheduler.running)
                    self._end(victim, "error", error=overloaded)
            case Cancel(id):
                if id in self._sequences:
                    self._end(self._sequences[id], "cancelled")
            case Share(prompts):
                self._mover.share(prompts)
            case Look():
                command.carry_out(self._scheduler, self.totals)
            case Fail(id, error):
                if id in self._sequences:
                    self._end(self._sequences[id], "error", error=engine_failure(error))
            case Close(deadline):
                self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
            case Encoded() if self._encoder is not None:
                for sequence in self._encoder.take(command, self._scheduler.running):
                    self._end(sequence, "error", error=command.error)
            case Written() | Fetched() | Lost():
                self._mover.take(command)

    def _begin(self, sequence: Sequence) -> None:
        self._sequences[sequence.id] = sequence
        sequence.listener = Heard(sequence.listener, lambda error: self.commands.put(Fail(sequence.id, error)))
        self._scheduler.submit(sequence)
        try:
            if sequence.limit <= sequence.n_prompt and not sequence.unscored:
                self._end(sequence, "length")
            else:
                self._want_mask(sequence)
        except Exception as error:
            self._fail(sequence, error)

    def _try_step(self) -> None:
        try:
            self._step()
        except Exception as error:
            self._start_over(error)
        else:
            self._failures = 0

    def _start_over(self, error: Exception) -> None:
        """Compute again what the context holds, without the sequence that failed alone if there is one. Raises `error` when
        that has not helped before."""
        expected = isinstance(error, EngineFailure)
        logger.error("a step failed (%s); what runs is computed again", error, exc_info=None if expected else error)
        alone = self._alone
        if alone is not None and self._progress:
            self._failures = 0  # the context works: it is this sequence
        self._count_failure(error)
        if alone is not None and alone.id in self._sequences:
            self._end(alone, "error", error=engine_failure(error))
        if not isinstance(error, InvalidBatch):
            self._scheduler.reset(list(self._sequences.values()))
            self._context.clear()
        self._hand_out()

    def _count_failure(self, error: Exception) -> None:
        """Raises `error` if there have been too many in a row."""
        self._failures += 1
        if self._failures > FAILURES:
            raise error

    def _step(self) -> None:
        began, self._alone, self._progress = time.perf_counter(), None, False
        plan = self._scheduler.plan()
        if self._encoder is not None:
            self._encoder.serve(self._scheduler.running)
        self.totals.preemptions = self._scheduler.preemptions
        for move in plan.moves:
            self._mover.carry_out(move)
        self.totals.lap("plan", began)
        careful = self._failures > 0
        batches = plan.batches
        if self._drafter is not None and plan.guesses:
            self._hand_out()  # the event loop works on these meanwhile
            batches = self._drafter.carry_out(plan)
        batches = [[chunk] for batch in batches for chunk in batch] if careful else batches
        for batch in batches:
            self._alone = batch[0].sequence if careful else None
            chunks = [chunk for chunk in batch if chunk.sequence.slot != UNPLACED]
            if chunks and not self._compute(chunks):
                return
        if not batches and any(sequence.wants_room for sequence in self._scheduler.running):
            self._scheduler.relieve()
        self.totals.steps += 1
        self.totals.step.observe(time.perf_counter() - began)

    def _compute(self, chunks: list[Chunk]) -> bool:
        """Decode one batch and accept what follows from it. False: there was no room, the rest of the plan is void."""
        began = time.perf_counter()
        filled, outputs = self._batches.of(chunks)
        if self._device is not None:
            self._device.arrange(device_plans(chunks))
        self._masks.start()
        began = self.totals.lap("fill", began)
        for chunk in chunks:
            try:
                self._tell(chunk.sequence, self._prompts.begun(chunk.sequence, began))
            except Exception as error:
                self.commands.put(Fail(chunk.sequence.id, error))
        self._hand_out()  # the event loop works on these while llama.cpp computes and the interpreter is free
        began = self.totals.lap("post", began)
        switched = self._context.use(chunks[0].sequence.adapters)
        waits = bool(outputs) or self._alone is not None or not self._scheduler.limits.queues
        if (self._context.decode if waits else self._context.submit)(filled) == NO_ROOM:
            if not self._scheduler.relieve():
                raise EngineFailure("llama.cpp finds no KV room for a single sequence")
            return False
        self._progress = True
        decoded = self.totals.lap("decode", began)
        self.totals.adapter_switches += switched
        learn(self._scheduler.costs, chunks, self._scheduler.limits, decoded - began, waits, switched)
        for save in self._scheduler.commit(chunks):
            self._mover.save(save)
        for chunk in chunks:
            try:
                self._tell(chunk.sequence, self._prompts.computed(chunk))
            except Exception as error:
                self._fail(chunk.sequence, error)
        if outputs:
            self._accept_all(chunks, outputs)
        self.totals.lap("sample", decoded)
        return True

    def _tell(self, sequence: Sequence, events: Iterable[TokenEvent]) -> None:
        self._events += [(sequence.listener, event) for event in events]

    def _accept_all(self, chunks: list[Chunk], outputs: list[int]) -> None:
        """Let each answer that has caught up go on. Those that need a mask come last: only they wait for it."""
        logits = self._context.logits()
        masked: list[tuple[Sequence, Logits, int]] = []
        at = 0
        for chunk in chunks:
            begin, at, sequence = at, at + chunk.outputs, chunk.sequence
            if sequence.id not in self._sequences:
                continue
            try:
                sequence.answer.score(logits[begin:at], sequence.tokens, sequence.n_prompt)
                if chunk.draft:
                    self._verify(chunk, logits[begin:at], outputs[begin:at])
                elif chunk.last and sequence.answer.needs_mask:
                    masked.append((sequence, logits[at - 1], outputs[at - 1]))
                elif chunk.last:
                    self._accept(sequence, logits[at - 1], outputs[at - 1])
            except Exception as error:
                self._fail(sequence, error)
        if masked:
            self._masks.wait()
        for each in masked:
            try:
                self._accept(*each)
            except Exception as error:
                self._fail(each[0], error)

    def _verify(self, chunk: Chunk, logits: Logits, outputs: list[int]) -> None:
        """Let an answer go on from the logits of its last token, and from those of its draft as far as that is right; what it
        has computed beyond is removed."""
        sequence, slot = chunk.sequence, chunk.sequence.slot
        right = 0
        sequence.rejected += len(chunk.draft)  # until it proves right
        try:
            while True:
                if sequence.answer.needs_mask:
                    self._masks.start()
                    self._masks.wait()
                known = len(sequence.tokens)
                self._accept(sequence, logits[right], outputs[right])
                new = sequence.tokens[known:]
                if sequence.id not in self._sequences or tuple(new) != chunk.draft[right : right + len(new)]:
                    break
                self._scheduler.verified(sequence, len(new))
                right += len(new)
        finally:
            self.totals.drafts(right, len(chunk.draft) - right)
            if self._drafter is not None and chunk.guess and sequence.id in self._sequences:
                self._drafter.learn(sequence, right, chunk.guess)
            self._context.remove(slot, sequence.position(chunk.start + 1 + right))

    def _accept(self, sequence: Sequence, logits: Logits, output: int) -> None:
        """Let one answer go on from the logits of its last token."""
        answer = sequence.answer
        if not answer.begun:
            answer.begin(sequence.texts, sequence.limit)
            self.totals.prompt(sequence.n_prompt, sequence.cache)
        if sequence.limit <= sequence.n_prompt:
            self._end(sequence, "length")
            return
        drawn = self._device.draw(sequence.slot, output) if self._device is not None else None
        tokens = answer.advance(self._context, logits, output, drawn)
        if not tokens:
            self._end(sequence, "stop")
            return
        event = answer.accept(tokens, logits, sequence.limit - len(sequence.tokens))
        self.totals.tokens(sequence, len(event.token_ids), time.perf_counter())
        self._scheduler.append(sequence, list(event.token_ids))
        if event.finish_reason:
            self._end(sequence, event.finish_reason, event)
        else:
            self._events.append((sequence.listener, event))
            self._want_mask(sequence)

    def _want_mask(self, sequence: Sequence) -> None:
        if sequence.answer.guide is not None and sequence.answer.needs_mask:
            self._masks.want(sequence.answer.guide)

    def _end(
        self, sequence: Sequence, reason: FinishReason, last: TokenEvent | None = None, error: Exception | None = None
    ) -> None:
        """End a sequence, wherever it is, with its `last` tokens if there are any; its room is free with the next step."""
        self._scheduler.finish(sequence)
        self._forget(sequence, reason, last, error)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence by an error of its own."""
        if not isinstance(error, InvalidField):  # a grammar that cannot be followed is the client's
            if not isinstance(error, EngineFailure):
                logger.error("a request failed", exc_info=error)
            error = engine_failure(error)
        if sequence.id in self._sequences:
            self._end(sequence, "error", error=error)

    def _forget(
        self, sequence: Sequence, reason: FinishReason, last: TokenEvent | None = None, error: Exception | None = None
    ) -> None:
        """Send the last event, whatever fails, and free what the answer holds."""
        del self._sequences[sequence.id]
        self._ended(sequence.caller)
        answer = sequence.answer
        try:
            answer.close()
            last = last or TokenEvent("", prompt_logprobs=answer.prompt_logprobs())
            last = dataclasses.replace(last, text=last.text + answer.text.finish(), stop=answer.text.stop)
        except Exception as failure:
            logger.exception("an answer could not be ended")
            last, reason, error = TokenEvent(""), "error", error or engine_failure(failure)
        usage = sequence.usage_so_far if reason in ("cancelled", "error") else sequence.usage
        event = dataclasses.replace(last, finish_reason=reason, usage=usage, error=error)
        self._events.append((sequence.listener, event))

    def _fail_all(self, error: EngineFailure) -> None:
        """The context's content is unknown: every request fails, the pool starts empty, the engine goes on."""
        for sequence in list(self._sequences.values()):
            self._forget(sequence, "error", error=error)
        self._scheduler.reset()
        self._context.clear()
        self._hand_out()

    def _hand_out(self) -> None:
        if self._events:
            events, self._events = self._events, []
            deliver(self._post, events)
