"""A worker on a fake context, stepped by hand."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from locallab.engine.answer import Answer
from locallab.engine.costs import StepCosts
from locallab.engine.host_cache import HostCache
from locallab.engine.limits import Limits
from locallab.engine.post import call_each
from locallab.engine.request import SamplingParams, TokenEvent
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import Sequence
from locallab.engine.worker import Cancel, Submit, Worker
from tests.support.fake_llama import FakeContext, FakeGuide, FakeMasks, FakeModel


class Rig:
    """A worker whose `step` runs one step of the submitted requests, and checks every invariant."""

    def __init__(
        self,
        *,
        cells: int = 256,
        batch: int = 64,
        parallel: int = 8,
        slots: int = 12,
        cache_cells: int = 64,
        host_bytes: int = 0,
        rewind_limit: int | None = None,
        chunk: int = 16,
        tile: int = 0,
    ) -> None:
        limit = {} if rewind_limit is None else {"rewind_limit": rewind_limit}
        limits = Limits(
            cells=cells,
            batch=batch,
            parallel=parallel,
            slots=slots,
            cache_cells=cache_cells,
            step_seconds=chunk / 1000,
            tile=tile,
            **limit,
        )
        costs = StepCosts()
        costs.observe(0, 1000, 1.0)
        costs.observe = lambda *_: None  # type: ignore[method-assign]
        self.context = FakeContext(cells, rewind_limit is None, slots)
        self.scheduler = Scheduler(limits, HostCache(host_bytes, **limit), costs)
        self.ended = 0
        self.worker = Worker(self.context, self.scheduler, FakeModel.n_vocab, call_each, self._count)  # type: ignore[arg-type]
        self.masks = self.worker._masks = FakeMasks()  # type: ignore[assignment]
        self.events: dict[int, list[TokenEvent]] = {}
        self.prompts: dict[int, list[int]] = {}
        self._ids = iter(range(1 << 30))

    def submit(
        self, prompt: Seq[int], max_tokens: int = 8, *, guide: FakeGuide | None = None, urgent: bool = False, **params: object
    ) -> int:
        id = next(self._ids)
        self.events[id] = []
        self.prompts[id] = list(prompt)
        limit = min(self.scheduler.limits.cells, len(prompt) + max_tokens)
        sampling = SamplingParams(temperature=0, **params)  # type: ignore[arg-type]
        answer = Answer(sampling, FakeModel(), guide)  # type: ignore[arg-type]
        sequence = Sequence(id, list(prompt), len(prompt), limit, answer, self.events[id].append, urgent)
        self.worker._carry_out(Submit(sequence))
        return id

    def cancel(self, id: int) -> None:
        self.worker._carry_out(Cancel(id))

    def step(self) -> None:
        if self.worker._sequences:
            self.worker._step()
        self.check()

    def drain(self, steps: int = 2000) -> int:
        """Step until all requests have ended; return the number of steps."""
        for taken in range(steps):
            if not self.worker._sequences:
                self.worker._hand_out()
                return taken
            self.step()
        raise AssertionError(f"requests {sorted(self.worker._sequences)} starve")

    def tokens(self, id: int) -> list[int]:
        return [token for event in self.events[id] for token in event.token_ids]

    def last(self, id: int) -> TokenEvent:
        return self.events[id][-1]

    def last_or_none(self, id: int) -> TokenEvent | None:
        """Return the last event, once it has come."""
        return next((e for e in self.events[id] if e.finish_reason), None)

    def check(self) -> None:
        scheduler, cache = self.scheduler, self.scheduler.cache
        cache.check_integrity()
        done = {move.sequence for move in scheduler._moves if type(move).__name__ == "Remove"}
        held = {s for s, cells in self.context.sequences.items() if cells} - done
        for slot in held:
            indexed = cache.tokens(slot)[: cache.computed(slot)]
            assert self.context.tokens(slot) == indexed, "the index is not what the cells hold"
        assert {s for s in range(scheduler.limits.slots) if s in cache and cache.computed(s)} == held
        cells = {cell for slot in held for cell, _ in self.context.sequences[slot]}
        assert len(cells) == cache.used, "cells were leaked or counted twice"
        assert sorted(scheduler._free_slots + [s for s in range(scheduler.limits.slots) if s in cache]) == list(
            range(scheduler.limits.slots)
        ), "a sequence id was leaked"
        assert len(scheduler.running) <= scheduler.limits.parallel
        assert {s.slot for s in scheduler.running} <= {s for s in range(scheduler.limits.slots) if s in cache}

    def _count(self) -> None:
        self.ended += 1
