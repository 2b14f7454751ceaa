"""The one thread that owns a context for embeddings. A step reads as: take commands, pack, compute, complete."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from locallab.engine.commands import Close, Look
from locallab.engine.embedding.context import PooledContext, Rows
from locallab.engine.embedding.packing import EmbedJob, Packing
from locallab.engine.request import EngineStats
from locallab.engine.totals import Totals
from locallab.engine.view import MOST_WAITING, EngineView, RequestView
from locallab.errors import EngineClosed, EngineFailure, Overloaded, engine_failure

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Embed:
    """Compute a job. The queue may be `overloaded`: then one must leave it with that error."""

    job: EmbedJob
    overloaded: Overloaded | None = None


Command = Embed | Look | Close
Batch = list[tuple[EmbedJob, int]]
"""Jobs with the index of a sequence in each."""

FAILURES = 3
"""Batches in a row of which nothing could be computed, after which an engine takes itself for broken."""


class NoNumbers(EngineFailure):
    """The model has computed infinity, or what is no number: for these texts, not because it is broken."""


class EmbedWorker:
    """Runs steps until it is closed. Only `commands`, `stats` and `totals` may be touched from other threads."""

    def __init__(self, context: PooledContext, packing: Packing, finish: Callable[[Rows], Rows]) -> None:
        """`finish` turns a batch's rows into what the jobs get."""
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.totals = Totals()
        self._context = context
        self._packing = packing
        self._finish = finish
        self._computing = 0
        self._at_hand: Batch = []
        self._looks: list[Future[EngineView]] = []
        self._deadline: float | None = None

    def run(self) -> None:
        """Work until a Close command has been carried out; what fails for one job ends that one alone. Raises when nothing can
        be computed any more; call `abandon`."""
        failures = 0  # in a row
        while self._take_commands():
            self._at_hand = self._packing.take()
            self._show()
            if self._at_hand:
                failures = 0 if self._try_step(self._at_hand) else failures + 1
            if failures > FAILURES:
                raise EngineFailure("no embedding can be computed")

    def abandon(self, error: EngineFailure) -> None:
        """Fail every job that is left, those that have not begun too: `run` has raised."""
        for job in [*(job for job, _ in self._at_hand), *self._packing.drain()]:
            _fail(job, error)
        with contextlib.suppress(queue.Empty):
            while True:
                command = self.commands.get_nowait()
                if isinstance(command, Embed):
                    _fail(command.job, error)

    def stats(self) -> EngineStats:
        """Return a snapshot; each figure is read by itself."""
        totals = self.totals
        return EngineStats(
            running=self._computing,
            waiting=len(self._packing),
            kv_used=0,
            kv_total=0,
            cached=0,
            prompt_tokens=totals.prompt_tokens,
            cached_tokens=0,
            completion_tokens=0,
            preemptions=0,
            steps=totals.steps,
            stored_bytes=0,
            stored_limit=0,
        )

    def _show(self) -> None:
        """Answer who looks, once it is known what is computed next."""
        looks, self._looks = self._looks, []
        for answer in looks:
            if answer.set_running_or_notify_cancel():
                answer.set_result(self._view())

    def _view(self) -> EngineView:
        now, totals = time.perf_counter(), self.totals
        running = {job.id: job for job, _ in self._at_hand}
        waiting = [job for job in self._packing if job.id not in running]
        return EngineView(
            at=now,
            running=len(running),
            waiting=len(waiting),
            requests=tuple(
                RequestView(
                    id=job.id,
                    caller=job.caller,
                    state="prefill" if job.id in running else "waiting",
                    prompt_tokens=sum(map(len, job.sequences)),
                    computed_tokens=sum(len(job.sequences[place]) for place in job.rows),
                    age_seconds=now - job.submitted,
                )
                for job in (*running.values(), *waiting[:MOST_WAITING])
            ),
            prompt_tokens=totals.prompt_tokens,
            answer_tokens=0,
            steps=totals.steps,
            step_seconds=totals.step.sum,
        )

    def _take_commands(self) -> bool:
        """Carry out what other threads asked for; wait while there is nothing to compute. False: time to stop."""
        while True:
            try:
                idle = not self._packing and not self._looks and self._deadline is None
                command = self.commands.get(block=idle)
            except queue.Empty:
                break
            match command:
                case Embed(job, overloaded):
                    self._packing.add(job)
                    if overloaded is not None:
                        _fail(self._packing.crowded_out(job), overloaded)
                case Look(answer):
                    self._looks.append(answer)
                case Close(deadline):
                    self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
        if self._deadline is None:
            return True
        if time.monotonic() >= self._deadline:
            for job in self._packing.drain():
                _fail(job, EngineClosed("the engine was closed"))
        return bool(self._packing)

    def _try_step(self, batch: Batch) -> bool:
        """Compute a batch; if that fails, what it has of each job alone. Return whether any could be computed."""
        try:
            self._step(batch)
            return True
        except Exception as error:
            expected = isinstance(error, EngineFailure)
            logger.error("computing %d embeddings failed: %s", len(batch), error, exc_info=None if expected else error)
            jobs = {id(job): job for job, _ in batch}
            if len(jobs) == 1:
                _fail(batch[0][0], engine_failure(error))
                return isinstance(error, NoNumbers)
        parts = [[each for each in batch if each[0] is job] for job in jobs.values() if not job.future.done()]
        done = [self._try_step(part) for part in parts]
        return any(done)

    def _step(self, batch: Batch) -> None:
        self._computing = len({id(job) for job, _ in batch})
        sequences = [job.sequences[place] for job, place in batch]
        began = time.perf_counter()
        try:
            rows = self._context.compute(sequences)
        finally:
            self._computing = 0
        self.totals.steps += 1
        self.totals.step.observe(time.perf_counter() - began)
        self.totals.prompt_tokens += sum(map(len, sequences))
        if not np.isfinite(rows).all():
            raise NoNumbers("the model computed values that are no numbers")
        for (job, place), row in zip(batch, self._finish(rows), strict=True):
            job.rows[place] = row
            if len(job.rows) == len(job.sequences) and job.future.set_running_or_notify_cancel():
                job.future.set_result(np.stack([job.rows[i] for i in range(len(job.sequences))]))


def _fail(job: EmbedJob, error: Exception) -> None:
    """Fail a job, once though several of its sequences were in the batch."""
    if not job.future.done() and job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)
