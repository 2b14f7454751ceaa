"""A worker on a fake context, stepped by hand."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq

from locallab.engine import layout as layouts
from locallab.engine.adapters import BASE, AdapterSet
from locallab.engine.answer import Answer
from locallab.engine.cache import Node
from locallab.engine.caller import LOCAL, Caller, Places
from locallab.engine.commands import Cancel, Submit
from locallab.engine.costs import StepCosts
from locallab.engine.draft_model import Drafter
from locallab.engine.follower import Follower
from locallab.engine.kv_map import BUCKETS, kv_map
from locallab.engine.limits import Limits
from locallab.engine.post import call_each
from locallab.engine.request import SamplingParams, TokenEvent
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import Sequence
from locallab.engine.speculative import LONGEST
from locallab.engine.step_plan import Chunk, Copy, Remove, Save, StepPlan
from locallab.engine.worker import Worker
from locallab.errors import EngineFailure
from locallab.settings import Layout
from tests.support.fake_llama import (
    ADAPTERS,
    FIXED_BYTES,
    ROW_BYTES,
    VOCAB,
    FakeContext,
    FakeEncoder,
    FakeGuide,
    FakeMasks,
    FakeModel,
    Kind,
    read_rows,
    tokens_in,
)

TOKEN_SECONDS = 0.001
"""Time that the rig believes a prompt token to take; `chunk` of them are a step."""


class Rig:
    """A worker whose `step` runs one step of the submitted requests, and checks every invariant.

    In streams there are `parallel` of them, with `cells` in all. `host_bytes` of host RAM are for prefixes; a token takes
    ROW_BYTES there. `step_cost` and `move_cost` are the seconds of a step with one token and of moving a token.
    A picture is encoded after `encode_steps`.
    `guesses` makes a draft model, which says what follows and takes `guess_cost` seconds for that.
    """

    def __init__(
        self,
        *,
        layout: Layout = "unified",
        kind: Kind = "attention",
        cells: int = 256,
        batch: int = 64,
        parallel: int = 8,
        slots: int = 12,
        outputs: int = 0,
        cache_cells: int = 64,
        host_bytes: int = 0,
        snapshot_every: int = 0,
        chunk: int = 16,
        tile: int = 0,
        even: bool = False,
        step_cost: float = 0.0,
        move_cost: float = 0.0,
        guesses: Callable[[Seq[int]], int] | None = None,
        guess_cost: float = 0.0005,
        draft_streams: int = 0,
        draft_kind: Kind = "attention",
        encode_steps: int = 1,
    ) -> None:
        self.limits = Limits(
            cells=cells,
            batch=batch,
            parallel=parallel,
            slots=slots if layout == "unified" else parallel,
            outputs=outputs or (slots if layout == "unified" else parallel),
            cache_cells=cache_cells,
            step_seconds=chunk * TOKEN_SECONDS,
            drafts=kind in ("attention", "window"),
            tile=tile,
            layout=layout,
            even=even or layout == "streams",
            cuts=kind == "attention",
            cache_bytes=host_bytes,
            row_bytes=ROW_BYTES[kind],
            fixed_bytes=FIXED_BYTES[kind],
            snapshot_every=snapshot_every,
        )
        self.context = FakeContext(cells, layout, kind, self.limits.slots + self.limits.shares)
        self.context.n_outputs = self.limits.outputs
        self.follower, self.drafter = None, None
        if guesses is not None:
            self._open_drafter(guesses, guess_cost, draft_streams or parallel, draft_kind)
        self.scheduler = Scheduler(self.limits, _fixed_costs(step_cost, move_cost), self.follower)
        self.scheduler._chunking._tolerated = lambda _: self.limits.step_seconds  # type: ignore[method-assign]  # no pace
        self.cache = self.scheduler.cache
        self.ended = 0
        self.places = Places()
        parts = self.context, self.scheduler, FakeModel(), call_each, self._count, None, None, self.drafter
        self.worker = Worker(*parts)  # type: ignore[arg-type]
        self.worker.totals.adapter_tokens.update({each.name: 0 for each in ADAPTERS})
        self.worker._encoder = FakeEncoder(encode_steps)  # type: ignore[assignment]
        self.masks = self.worker._masks = FakeMasks()  # type: ignore[assignment]
        self.events: dict[int, list[TokenEvent]] = {}
        self.prompts: dict[int, list[int]] = {}
        self.asked: dict[int, Seq[int]] = {}  # with pictures
        self.callers: dict[int, Caller] = {}
        self.adapters: dict[int, AdapterSet] = {}
        self.chunks: dict[int, list[range]] = collections.defaultdict(list)
        self.put_back: set[int] = set()
        self._ids = iter(range(1 << 30))
        self._watch()

    def _open_drafter(self, guesses: Callable[[Seq[int]], int], cost: float, streams: int, kind: Kind) -> None:
        length = self.context_length
        self.draft_context = FakeContext(streams * length, "streams", kind, streams, guesses)
        self.follower = Follower(streams, length, 16 * streams, LONGEST if kind == "window" else None)
        self.follower.costs.observe_guess(1, 1, cost)
        self.follower.costs.observe_read(1, cost / 8)
        self.follower.costs.observe_guess = self.follower.costs.observe_read = lambda *_: None  # type: ignore[method-assign]
        self.drafter = Drafter(self.draft_context, self.follower, VOCAB)  # type: ignore[arg-type]

    @property
    def context_length(self) -> int:
        return self.limits.cells if self.limits.pooled else self.limits.cells // self.limits.slots

    def submit(
        self,
        prompt: Seq[int],
        max_tokens: int = 8,
        *,
        guide: FakeGuide | None = None,
        urgent: bool = False,
        caller: Caller = LOCAL,
        adapters: AdapterSet = BASE,
        **params: object,
    ) -> int:
        id = next(self._ids)
        self.events[id] = []
        self.prompts[id], self.asked[id] = list(prompt), prompt
        runs = tuple(run.at(run.start) for run in getattr(prompt, "runs", ()))
        self.callers[id] = caller
        self.adapters[id] = adapters
        limit = min(self.context_length, len(prompt) + max_tokens)
        sampling = SamplingParams(temperature=0, **params)  # type: ignore[arg-type]
        answer = Answer(sampling, FakeModel(), guide)  # type: ignore[arg-type]
        sequence = Sequence(id, list(prompt), len(prompt), limit, answer, self.events[id].append, urgent, caller, adapters)
        sequence.runs = runs
        self.places.enter(caller)
        self.worker._carry_out(Submit(sequence))
        return id

    def ask(self, prompt: Seq[int], max_tokens: int = 8, **params: object) -> list[int]:
        """Let a request run to its end, and what else there is; return its tokens."""
        id = self.submit(prompt, max_tokens, **params)  # type: ignore[arg-type]
        self.drain()
        return self.tokens(id)

    def cancel(self, id: int) -> None:
        self.worker._carry_out(Cancel(id))

    def step(self) -> None:
        """Run a step. Where one was to fail, it may; then the worker starts over, as in Worker.run."""
        if self.worker._sequences:
            try:
                self.worker._step()
            except EngineFailure as error:
                if not {"decode", "crash"} & set(self.context.fails):
                    raise
                self._start_over(error)
            else:
                self.worker._failures = 0
        self.check()

    def _start_over(self, error: EngineFailure) -> None:
        try:
            self.worker._start_over(error)
        except EngineFailure as last:
            self.worker._fail_all(last)

    def drain(self, steps: int = 2000) -> int:
        """Step until all requests have ended; return the number of steps."""
        for taken in range(steps):
            if not self.worker._sequences:
                self.worker._hand_out()
                return taken
            self.step()
        raise AssertionError(f"requests {sorted(self.worker._sequences)} starve")

    def rest(self) -> None:
        """Do what the worker does while nobody waits."""
        while self.worker._save_idle():
            self.check()

    def tokens(self, id: int) -> list[int]:
        return [token for event in self.events[id] for token in event.token_ids]

    def last(self, id: int) -> TokenEvent:
        return self.events[id][-1]

    def last_or_none(self, id: int) -> TokenEvent | None:
        """Return the last event, once it has come."""
        return next((e for e in self.events[id] if e.finish_reason), None)

    def cached(self, id: int) -> int:
        usage = self.last(id).usage
        assert usage is not None
        return usage.cached_tokens

    def stored(self) -> list[list[int]]:
        """Return the prefixes that lie in host RAM, without those that are the beginning of others."""
        found = [tokens for tokens, node in self._nodes() if node.rows is not None]
        return [tokens for tokens in found if not any(other[: len(tokens)] == tokens for other in found if other != tokens)]

    def gaps(self) -> int:
        """Return the gaps between the streams of answers."""
        return layouts.gaps([s.slot for s in self.scheduler.running if s.n_answer])

    def check(self) -> None:
        self.cache.check_integrity()
        self._check_sequences()
        self._check_cells()
        self._check_host_ram()
        self._check_drafter()

    def _check_drafter(self) -> None:
        """Check that the draft model's KV cache has what the follower says, and that no two sequences have one stream."""
        if self.follower is None:
            return
        for stream in self.follower._streams:
            assert self.draft_context.tokens(stream.index) == stream.held
            sequence = stream.sequence
            assert sequence is None or sequence.tokens[: stream.same] == stream.held[: stream.same]
            assert (sequence is None) == (stream not in self.follower._of.values())

    def _check_sequences(self) -> None:
        scheduler, cache = self.scheduler, self.cache
        slots = range(self.limits.slots)
        finished = list(cache.finished)
        live = [s.slot for s in scheduler.running]
        assert sorted(scheduler._free_slots + finished + live) == list(slots), "a slot was leaked or is used twice"
        assert {slot for slot in slots if slot in cache} == {*finished, *live}
        assert len(live) <= self.limits.parallel
        assert all(s.slot == -1 for s in scheduler.waiting)
        for sequence in scheduler.running:
            assert cache.tokens(sequence.slot) == sequence.tokens, "the index does not know what a sequence has"
            assert cache.computed(sequence.slot) == sequence.computed
        assert {s.id for s in scheduler.running + scheduler.waiting} == set(self.worker._sequences)

    def _check_cells(self) -> None:
        """Check that the index is what the cells hold, once the moves are made that have been planned already."""
        cells = {slot: dict(each) for slot, each in self.context.sequences.items()}
        for move in self.scheduler._moves:
            match move:
                case Copy(source, target, start, end):
                    cells[target].update({position: cells[source][position] for position in range(start, end)})
                case Remove(slot, start):
                    cells[slot] = {at: cell for at, cell in cells.get(slot, {}).items() if at < start}
                case Save(slot, tokens):
                    assert tokens_in(cells[slot]) == tokens, "something else is to be saved than what is there"
                case _:
                    raise AssertionError(f"{move} is left of a step")
        held = {slot: tokens_in(each) for slot, each in cells.items() if each}
        slots = [slot for slot in range(self.limits.slots) if slot in self.cache and self.cache.computed(slot)]
        indexed = {slot: self.cache.tokens(slot)[: self.cache.computed(slot)] for slot in slots}
        assert held == indexed, "the index is not what the cells hold"
        physical = {cell for each in cells.values() for cell, _ in each.values()}
        assert self.cache.used == len(physical), "cells were leaked or counted twice"
        self._check_map(cells)

    def _check_map(self, cells: Mapping[int, Mapping[int, tuple[int, object]]]) -> None:
        """Check the map of the cells against who holds each of them."""
        live = {s.slot for s in self.scheduler.running}
        holders: dict[int, list[bool]] = collections.defaultdict(list)
        for slot, each in cells.items():
            for cell, _ in each.values():
                holders[cell].append(slot in live)
        kinds = collections.Counter(
            "idle" if not any(held) else "shared" if len(held) > 1 else "live" for held in holders.values()
        )
        found = kv_map(self.cache, self.limits)
        assert (found.live, found.shared, found.idle) == (kinds["live"], kinds["shared"], kinds["idle"])
        assert found.free == self.limits.cells - len(holders)
        assert tuple(map(sum, zip(*found.buckets, strict=True))) == (found.live, found.shared, found.idle)
        assert len(found.buckets) <= BUCKETS

    def _check_host_ram(self) -> None:
        assert self.cache.size <= self.limits.cache_bytes
        for tokens, node in self._nodes():
            if node.rows is not None and self.limits.row_bytes:
                rows = [*zip(tokens, range(len(tokens)), strict=True)][node.start :]
                assert read_rows(node.rows) == rows, "rows in host RAM are those of other tokens"
            if node.fixed is not None and self.limits.fixed_bytes:
                assert self.context.state(node.fixed) == tokens, "a snapshot in host RAM is that of another prefix"

    def _nodes(self) -> Iterator[tuple[list[int], Node]]:
        """Yield every node of the index with all the tokens up to its end."""
        stack: list[tuple[list[int], Node]] = [([], self.cache._root)]
        while stack:
            above, node = stack.pop()
            tokens = above + node.tokens
            stack += [(tokens, child) for child in node.children.values()]
            yield tokens, node

    def _watch(self) -> None:
        """Check each plan, and note what is computed for whom."""
        scheduler = self.scheduler
        plan, commit, put_back, reset = scheduler.plan, scheduler.commit, scheduler._put_back, scheduler.reset
        verified = scheduler.verified

        def checked_plan() -> StepPlan:
            made = plan()
            for batch in made.batches:
                self._check_batch(batch)
            return made

        def noted_commit(chunks: list[Chunk]) -> list[Save]:
            for chunk in chunks:
                self.chunks[chunk.sequence.id].append(range(chunk.start, chunk.start + chunk.known))
            return commit(chunks)

        def noted_verified(sequence: Sequence, count: int) -> None:
            self.chunks[sequence.id].append(range(sequence.computed, sequence.computed + count))
            verified(sequence, count)

        def noted_put_back(sequence: Sequence, save: bool = False) -> None:
            self.put_back.add(sequence.id)
            put_back(sequence, save)

        def noted_reset(keep: Seq[Sequence] = ()) -> None:
            self.put_back |= {sequence.id for sequence in keep}
            reset(keep)

        scheduler.reset = noted_reset  # type: ignore[assignment]
        scheduler.plan = checked_plan  # type: ignore[method-assign]
        scheduler.commit = noted_commit  # type: ignore[method-assign]
        scheduler.verified = noted_verified  # type: ignore[method-assign]
        scheduler._put_back = noted_put_back  # type: ignore[method-assign]

    def _check_batch(self, batch: list[Chunk]) -> None:
        assert 0 < sum(chunk.count for chunk in batch) <= self.limits.batch
        assert len({chunk.sequence.id for chunk in batch}) == len(batch)
        for chunk in batch:
            within = [run for run in chunk.sequence.runs if run.start < chunk.start + chunk.known and chunk.start < run.end]
            assert within == ([chunk.run] if chunk.run else []), "text and a picture in one chunk"
            if chunk.run is not None:
                assert len(batch) == 1 and chunk.run.embeddings is not None
                end = chunk.start + chunk.count
                assert chunk.run.start <= chunk.start and end <= chunk.run.end
                assert not chunk.run.whole or (chunk.start, end) == (chunk.run.start, chunk.run.end), "a picture is cut"
        assert len({chunk.sequence.adapters for chunk in batch}) == 1, "a batch has one set of adapters"
        if self.limits.even and len(batch) > 1:
            assert len({chunk.count for chunk in batch}) == 1, "llama.cpp splits a batch that is not even"
            assert all(chunk.is_answer for chunk in batch)
            slots = [chunk.sequence.slot for chunk in batch]
            assert slots == sorted(slots), "llama.cpp splits a batch whose sequences are not in order"

    def _count(self, caller: Caller) -> None:
        self.ended += 1
        self.places.leave(caller)


def _fixed_costs(step: float, move: float) -> StepCosts:
    """Return costs that learn nothing from the fake context."""
    costs = StepCosts()
    costs._prompt.coefficients = (0.0, TOKEN_SECONDS, 0.0)
    costs._decode.coefficients = (step, 0.0, 0.0)
    costs.observe_move(1, move)
    costs.observe = costs.observe_move = lambda *_: None  # type: ignore[method-assign]
    costs.observe_drafts = costs.observe_switch = lambda *_: None  # type: ignore[method-assign]
    return costs
