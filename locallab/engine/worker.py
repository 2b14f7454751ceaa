"""The one thread that owns a context. A step reads as: take commands, plan, move, decode, sample, hand out."""

from __future__ import annotations

import dataclasses
import logging
import queue
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

from locallab.engine.grammar.guide import Guide, Masks
from locallab.engine.llama import NO_ROOM, Batch, Context, Model
from locallab.engine.logprobs import Logits, Logprobs
from locallab.engine.reasoning_budget import Thinking
from locallab.engine.request import Delivery, EngineStats, FinishReason, Listener, Progress, TokenEvent, TokenLogprob
from locallab.engine.sampler import Sampler
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import UNPLACED, Sequence
from locallab.engine.step_plan import Chunk, Copy, Move, Remove, Restore, Save
from locallab.engine.totals import Totals
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
    """Runs steps until it is closed. Only `commands`, `stats` and `totals` may be touched from other threads."""

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
        self._masks = Masks(model.n_vocab)
        self._sequences: dict[int, Sequence] = {}
        self._samplers: dict[int, Sampler] = {}
        self._events: list[tuple[Listener, TokenEvent]] = []
        self._deadline: float | None = None
        self.totals = Totals()

    def run(self) -> None:
        """Works until a Close command has been carried out. Every sequence gets its last event, whatever happens."""
        going = True
        while going:
            try:
                if going := self._take_commands():
                    self._step()
            except EngineFailure as error:
                logger.error("%s; all running requests have failed", error)
                self._fail_all(error)
            except Exception as error:
                logger.exception("a step failed; all running requests have failed")
                self._fail_all(EngineFailure(f"internal error: {error}"))
        self._hand_out()
        self._masks.close()

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
        if sequence.limit <= sequence.n_prompt and not sequence.unscored:
            self._end(sequence, "length")
        elif sequence.guide and not sequence.guide.due:
            self._masks.want(sequence.guide)

    def _step(self) -> None:
        began = time.perf_counter()
        plan = self._scheduler.plan()
        self.totals.preemptions = self._scheduler.preemptions
        for move in plan.moves:
            self._move(move)
        for batch in plan.batches:
            chunks = [chunk for chunk in batch if chunk.sequence.slot != UNPLACED]
            if chunks and not self._compute(chunks):
                return
        self.totals.steps += 1
        self.totals.step.observe(time.perf_counter() - began)

    def _compute(self, chunks: list[Chunk]) -> bool:
        """Computes one batch and what follows from it. False: there was no room, the rest of the plan is void."""
        outputs = self._fill(chunks)
        self._masks.start()
        self._hand_out()  # the event loop works on these while llama.cpp computes and the interpreter is free
        began = time.perf_counter()
        if self._context.decode(self._batch) == NO_ROOM:
            if not self._scheduler.relieve():
                raise EngineFailure("llama.cpp finds no KV room for a single sequence")
            return False
        seconds = time.perf_counter() - began
        n_answers = sum(chunk.count for chunk in chunks if chunk.is_answer)
        self._scheduler.costs.observe(n_answers, sum(chunk.count for chunk in chunks) - n_answers, seconds)
        self._scheduler.commit(chunks)
        for chunk in chunks:
            if chunk.sequence.params.progress and chunk.start < chunk.sequence.n_prompt:
                self._tell_progress(chunk.sequence, began)
        if outputs:
            self._advance(chunks, outputs)
        return True

    def _tell_progress(self, sequence: Sequence, began: float) -> None:
        """Not when its prompt is read again: a preempted one has told it before."""
        if sequence.n_answer:
            return
        sequence.began = sequence.began or began
        seconds = time.perf_counter() - sequence.began
        progress = Progress(sequence.n_prompt, sequence.cached, sequence.computed, seconds)
        self._events.append((sequence.listener, TokenEvent("", progress=progress)))

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
        """Fills the batch; returns the entries whose logits are wanted."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        outputs: list[int] = []
        for chunk in chunks:
            end = chunk.start + chunk.count
            tokens += chunk.sequence.tokens[chunk.start : end]
            positions += range(chunk.start, end)
            slots += [chunk.sequence.slot] * chunk.count
            outputs += [0] * (chunk.count - chunk.outputs) + [1] * chunk.outputs
        self._batch.fill(tokens, positions, slots, outputs)
        return [i for i, wanted in enumerate(outputs) if wanted]

    def _advance(self, chunks: list[Chunk], outputs: list[int]) -> None:
        """Finds the next tokens of each sequence that has caught up, and says what they mean for the request.

        Those with a guide come last: only they wait for masks.
        """
        logits = self._context.logits()
        guided: list[tuple[Sequence, Guide, Logits, int]] = []
        at = 0
        for chunk in chunks:
            begin, at, sequence = at, at + chunk.outputs, chunk.sequence
            if sequence.logprobs is not None and self._told(sequence, sequence.logprobs, chunk, logits[begin:at]):
                continue
            if not chunk.last:
                continue
            row, output = logits[at - 1], outputs[at - 1]
            if sequence.guide:
                guided.append((sequence, sequence.guide, row, output))
            else:
                self._emit(sequence, [self._sampler(sequence).draw(self._context, row, output)], row)
        if guided:
            self._masks.wait()
        for sequence, guide, row, output in guided:
            try:
                self._follow(sequence, guide, row, output)
            except EngineFailure as error:
                self._end(sequence, "error", error=error)

    def _told(self, sequence: Sequence, logprobs: Logprobs, chunk: Chunk, logits: Logits) -> bool:
        """What logprobs want of these places. True: nothing is to be drawn, the next token is certain or there is none."""
        for row in logits[: min(sequence.unscored, len(logits))]:
            logprobs.score(row, sequence.tokens[sequence.n_prompt - sequence.unscored])
        if not chunk.last:
            return True
        if sequence.limit <= sequence.n_prompt:
            self._sampler(sequence)  # counts the prompt
            self._end(sequence, "length")
            return True
        logprobs.see(logits[-1])
        if not logprobs.due:
            return False
        self._say(sequence, [logprobs.due.pop(0)], logits[-1])
        self._want_mask(sequence)
        return True

    def _follow(self, sequence: Sequence, guide: Guide, logits: Logits, output: int) -> None:
        """What its grammar forces at the beginning, or a token drawn from what it allows, and then what it forces."""
        sampler = self._sampler(sequence)
        drawn = []
        if not guide.due:
            if not guide.restrict(logits, sampler.banned):
                self._end(sequence, "stop")
                return
            drawn = [sampler.draw(self._context, logits, output)]
            guide.accept(drawn[0])
        forced = guide.take()
        sampler.accept(forced)
        self._emit(sequence, drawn + forced, logits)
        self._want_mask(sequence)

    def _want_mask(self, sequence: Sequence) -> None:
        """If the next token is to be drawn from what a grammar allows."""
        certain = sequence.logprobs is not None and sequence.logprobs.due
        if sequence.guide is not None and sequence.id in self._sequences and not certain:
            self._masks.want(sequence.guide)

    def _sampler(self, sequence: Sequence) -> Sampler:
        """Made with the first token, so that what never gets that far costs nothing."""
        sampler = self._samplers.get(sequence.id)
        if sampler:
            return sampler
        sampler = self._samplers[sequence.id] = Sampler(sequence.params, self._model, self._context.n_ctx)
        sampler.accept(sequence.tokens)
        self.totals.prompt_tokens += sequence.n_prompt
        self.totals.cached_tokens += sequence.cached
        return sampler

    def _emit(self, sequence: Sequence, tokens: list[int], logits: Logits) -> None:
        """The answer goes on with `tokens`, of which the first has these logits."""
        if sequence.thinking is not None:
            tokens = tokens + self._closing(sequence, sequence.thinking, tokens)
        if sequence.logprobs is not None:
            tokens, sequence.logprobs.due = tokens[:1], tokens[1:]
        self._say(sequence, tokens, logits)

    def _say(self, sequence: Sequence, tokens: list[int], logits: Logits) -> None:
        count, text, reason = self._read(sequence, tokens)
        said = tokens[:count]
        self.totals.tokens(sequence, count, time.perf_counter())
        self._scheduler.append(sequence, said)
        told: tuple[TokenLogprob, ...] = ()
        if sequence.logprobs is not None and not self._closes(sequence, said[0], text):
            told = (sequence.logprobs.tell(logits, said[0]),)
        if reason:
            self._end(sequence, reason, text, said, logprobs=told)
        else:
            event = TokenEvent(text, tuple(said), logprobs=told, prompt_logprobs=_prompts(sequence))
            self._events.append((sequence.listener, event))

    def _closes(self, sequence: Sequence, token: int, text: str) -> bool:
        """Whether a token that came with this text ended the answer and is no part of it."""
        return self._is_end(sequence, token) or (sequence.text.stopped and not text)

    def _closing(self, sequence: Sequence, thinking: Thinking, tokens: list[int]) -> list[int]:
        """What ends the reasoning where the tokens use up its budget."""
        told = [thinking.spend(self._piece(sequence, token)) for token in tokens]  # each token counts
        if not any(told):
            return []
        assert sequence.params.reasoning is not None
        closing = f"\n{sequence.params.reasoning.end}\n\n"
        forced = self._model.tokenize(closing, add_special=False, parse_special=True)
        if sequence.guide is not None:
            sequence.guide.accept(*forced)
            forced += sequence.guide.take()
        self._sampler(sequence).accept(forced)
        return forced

    def _piece(self, sequence: Sequence, token: int) -> bytes:
        return self._model.name(token) if token in sequence.params.visible else self._model.piece(token)

    def _read(self, sequence: Sequence, tokens: list[int]) -> tuple[int, str, FinishReason | None]:
        """How many of the tokens still belong to the answer, their text, and why it ends with them if it does."""
        text = ""
        limit = sequence.limit - len(sequence.tokens)
        for count, token in enumerate(tokens, 1):
            if self._is_end(sequence, token):
                return count, text, "stop"
            text += sequence.text.feed(self._piece(sequence, token))
            if sequence.text.stopped or (count == len(tokens) and sequence.complete):
                return count, text, "stop"
            if count >= limit:
                return count, text, "length"
        return len(tokens), text, None

    def _is_end(self, sequence: Sequence, token: int) -> bool:
        params = sequence.params
        return token in params.stop_token_ids or (token in self._model.end_tokens and not params.ignore_eos)

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        text: str = "",
        tokens: Seq[int] = (),
        error: Exception | None = None,
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """A sequence has ended, wherever it was; its room is free with the next step."""
        self._scheduler.finish(sequence)
        self._forget(sequence)
        text += sequence.text.finish()
        stop, of_prompt = sequence.text.stop, _prompts(sequence)
        event = TokenEvent(text, tuple(tokens), reason, sequence.usage, error, stop, logprobs, of_prompt)
        self._events.append((sequence.listener, event))

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
        scheduler, totals = self._scheduler, self.totals
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_used=scheduler.cache.used,
            kv_total=scheduler.limits.cells,
            cached=scheduler.cache.cold_cells,
            prompt_tokens=totals.prompt_tokens,
            cached_tokens=totals.cached_tokens,
            completion_tokens=totals.completion_tokens,
            preemptions=totals.preemptions,
            steps=totals.steps,
        )


def _prompts(sequence: Sequence) -> tuple[TokenLogprob, ...]:
    """The logprobs of its prompt, for its first event."""
    return sequence.logprobs.take_scored() if sequence.logprobs is not None else ()
