"""Decides what the next step computes. Pure: never touches llama_cpp, so that every rule can be tested by itself.

There are no prefill and decode phases. Each running sequence has known and computed tokens; a step moves `computed` towards
`known` under one token budget: first a token for each sequence that is decoding, then the other tokens that a grammar has
forced on it, then chunks of prompts.

The life of a sequence: submit -> waiting -> (admit) running -> finish or cancel. The KV pool full, the youngest running one
goes back to waiting and is recomputed later. A finished sequence stays in the prefix cache until its room is wanted.
Urgent ones (somebody types meanwhile) go ahead, within bounds: others are let in after a few, and get half of what prompts get.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator

from locallab.engine.cache import NO_MATCH, Match, PrefixCache
from locallab.engine.costs import StepCosts
from locallab.engine.host_cache import HostCache, StoredMatch
from locallab.engine.limits import Limits
from locallab.engine.sequence import UNPLACED, Sequence
from locallab.engine.step_plan import FORCED, Chunk, Copy, Move, Remove, Restore, Save, StepPlan, cut

WORTH_WAITING = 8
"""Tokens that must be gained to wait for another sequence's prefill, or to fetch a prefix back from host RAM."""
WORTH_SAVING = 64
"""Cells a finished sequence must hold alone to be moved to host RAM rather than dropped."""
TILE_STEPS = 10
"""A tile may take so many times as long as a step should: what is less takes hardly less time, or even more."""
LEAST_CHUNK = 16
"""Prompt tokens in a step at least, however slow the machine: a prompt always gets on."""
LOOKAHEAD = 128
"""Tokens of its answer that a request must find room for to be let in: preempting costs more than waiting."""
ADMISSIONS = 64
"""Waiting requests looked at in one step, so that a long queue costs no time between steps."""
OVERTAKING = 4
"""Urgent requests that are let in ahead of others that wait, one after the other; then one of the others goes first."""


class Scheduler:
    """Holds every sequence of one engine. Not thread-safe: only the engine's thread calls it."""

    def __init__(self, limits: Limits, host: HostCache, costs: StepCosts) -> None:
        self.limits = limits
        self.cache = PrefixCache(limits.rewind_limit)
        self.host = host
        self.costs = costs
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.preemptions = 0
        self._free_slots = list(range(limits.slots))[::-1]
        self._moves: list[Move] = []
        self._oldest_first = False
        self._overtaken = 0  # urgent sequences let in ahead of others since one of those was
        self._ahead = 0  # prompt tokens by which urgent sequences are ahead of others, while there are both

    def submit(self, sequence: Sequence) -> None:
        """Mutates: queues a new sequence, or puts one back at the place of its age. Urgent ones stand before all others."""
        bisect.insort(self.waiting, sequence, key=lambda s: (not s.urgent, s.id))

    def finish(self, sequence: Sequence) -> None:
        """Mutates: a sequence has ended, at whatever point; what it computed stays in the prefix cache."""
        if sequence.slot == UNPLACED:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        kept = self.cache.finish(sequence.slot)
        if kept and not (self.limits.cache_cells or self.host.capacity):
            self.cache.remove(sequence.slot)
            kept = False
        if not kept:
            self._release(sequence.slot)
        sequence.slot = UNPLACED

    def append(self, sequence: Sequence, tokens: list[int]) -> None:
        """Mutates: the next tokens of a running sequence are known."""
        sequence.tokens += tokens
        self.cache.extend(sequence.slot, tokens)

    def plan(self) -> StepPlan:
        """Mutates: admits and preempts; what is to be computed counts as computed only after `commit`."""
        decoding = self._make_room_for_decode()
        self._admit()
        self._bound_cache()  # not before: what a waiting request shares is live now
        answers = list(self._answer_chunks(decoding))
        prompts = list(self._prompt_chunks(decoding, sum(chunk.count for chunk in answers)))
        moves, self._moves = self._moves, []
        return StepPlan(moves, self._batches(answers, prompts))

    def commit(self, chunks: list[Chunk]) -> None:
        """Mutates: a batch has been computed."""
        for chunk in chunks:
            chunk.sequence.computed += chunk.count
            self.cache.advance(chunk.sequence.slot, chunk.count)

    def relieve(self) -> bool:
        """Mutates: llama.cpp found no room for the plan. Frees some; False when nothing is left to free."""
        if self._evict_one():
            return True
        if len(self.running) < 2:
            return False
        self._preempt_youngest()
        return True

    def reset(self) -> None:
        """Mutates: the KV pool's content is lost; forgets every sequence and prefix in it."""
        self.cache = PrefixCache(self.limits.rewind_limit)
        self.running.clear()
        self.waiting.clear()
        self._free_slots = list(range(self.limits.slots))[::-1]
        self._moves.clear()

    def unrestored(self, sequence: Sequence) -> None:
        """Mutates: the state that was to be restored for a sequence could not be; it begins again without it."""
        self._put_back(sequence)

    @property
    def _free_cells(self) -> int:
        return self.limits.cells - self.cache.used

    def _make_room_for_decode(self) -> list[Sequence]:
        """The running sequences that decode, after room for a token of each has been made."""
        while True:
            decoding = [s for s in self.running if _decodes(s)]
            if len(decoding) <= self._free_cells:
                return decoding
            if not self._evict_one():
                self._preempt_youngest()

    def _admit(self) -> None:
        """Moves waiting sequences to running, oldest first. One that waits for a prefix lets others pass; one that waits
        for room does not, so that it gets it."""
        for sequence in self._candidates():
            ready, known = (NO_MATCH, NO_MATCH) if sequence.unscored else self.cache.match(sequence.tokens)
            if known.length - ready.ready >= WORTH_WAITING:
                continue
            saved = None if sequence.unscored else self._saved(sequence, ready.ready + WORTH_WAITING)
            shared = NO_MATCH if saved else ready
            if not self._fits(sequence, shared):
                return
            self._place(sequence, shared)
            if saved:
                self._restore(sequence, saved)

    def _candidates(self) -> Iterator[Sequence]:
        """Those that wait, in the order in which they are let in while there is a place: urgent ones first, but not too many in
        a row."""
        if len(self.running) >= self.limits.parallel:
            return
        urgent = [s for s in self.waiting[:ADMISSIONS] if s.urgent]
        others = list(itertools.islice((s for s in self.waiting if not s.urgent), ADMISSIONS))
        while (urgent or others) and len(self.running) < self.limits.parallel:
            overtakes = bool(urgent and others) and self._overtaken < OVERTAKING
            sequence = (urgent if overtakes or not others else others).pop(0)
            yield sequence
            if sequence.slot != UNPLACED:
                self._overtaken = self._overtaken + 1 if overtakes else 0

    def _saved(self, sequence: Sequence, at_least: int) -> StoredMatch | None:
        """A state in host RAM that saves computing so many tokens and, whole as it is first put back, has room."""
        saved = self.host.match(sequence.tokens)
        room = self.limits.cells - self.cache.used + self.cache.cold_cells
        return saved if saved and saved.length >= at_least and len(saved.stored.tokens) <= room else None

    def _fits(self, sequence: Sequence, match: Match) -> bool:
        """Whether there is room for a sequence beside what the running ones will need soon; alone, it fits always."""
        if not self.running:
            return True
        wanted = sum(_soon(s) - s.computed for s in self.running) + _soon(sequence) - match.ready
        live = self.cache.used - self.cache.cold_cells + self.cache.cold_prefix(match)
        return live + wanted <= self.limits.cells

    def _place(self, sequence: Sequence, match: Match) -> None:
        if not self._free_slots:
            self._evict_one(keep=match.sequence)
        slot = self._free_slots.pop()
        self.waiting.remove(sequence)
        self.cache.add(slot, sequence.tokens, match)
        if match.ready:
            self._moves.append(Copy(match.sequence, slot, match.ready))
        self._run(sequence, slot, match.ready)

    def _restore(self, sequence: Sequence, saved: StoredMatch) -> None:
        while self._free_cells < len(saved.stored.tokens) and self._evict_one():
            pass
        self.host.touch(saved.stored)
        self._moves.append(Restore(sequence, saved.stored, saved.length))
        self.cache.advance(sequence.slot, saved.length)
        self._begin_at(sequence, saved.length)

    def _run(self, sequence: Sequence, slot: int, computed: int) -> None:
        sequence.slot = slot
        self._begin_at(sequence, computed)
        bisect.insort(self.running, sequence, key=lambda s: s.id)

    def _begin_at(self, sequence: Sequence, computed: int) -> None:
        sequence.computed = computed
        if not sequence.n_answer:  # what is found again after a preemption had been computed once
            sequence.cached = computed

    def _answer_chunks(self, decoding: list[Sequence]) -> Iterator[Chunk]:
        """A token for each, and of those that were forced as many more as the budget has room for, the oldest first."""
        n_decode = len(decoding)
        spare = sum(s.pending for s in decoding) - n_decode
        if spare:
            spare = min(spare, self._budget(n_decode), self.limits.batch - n_decode, self._room_for_prompts(n_decode))
        for sequence in decoding:
            count = 1 + max(0, min(sequence.pending - 1, spare))
            spare -= count - 1
            yield Chunk.of(sequence, count)

    def _prompt_chunks(self, decoding: list[Sequence], n_decode: int) -> Iterator[Chunk]:
        """Cuts the rest of the budget into chunks."""
        prefilling = [s for s in self.running if s not in decoding]
        if not prefilling:
            return
        room = min(self.limits.batch - n_decode, self._room_for_prompts(n_decode))
        budget = min(self._budget(n_decode), room)
        tile = self.limits.tile if budget >= self.limits.tile else 0
        outputs = self.limits.slots - len(self.running)
        for sequence in self._in_turn(prefilling):
            if budget <= 0:
                return
            if sequence.unscored:
                count = min(sequence.pending, budget, 1 + outputs)
                outputs -= count - 1
            else:
                count = cut(sequence.pending, budget, room, tile)
            if count:
                self._ahead = max(0, self._ahead + (count if sequence.urgent else -count))
                yield Chunk.of(sequence, count)
            room -= count
            budget -= count

    def _in_turn(self, prefilling: list[Sequence]) -> list[Sequence]:
        """In turns the oldest prompt goes first and the shortest one. Urgent ones go before all others, as long as they have
        not been given more tokens than those."""
        self._oldest_first = not self._oldest_first
        ordered = prefilling if self._oldest_first else sorted(prefilling, key=lambda s: s.pending)
        if all(not s.urgent for s in ordered) or all(s.urgent for s in ordered):
            self._ahead = 0
            return ordered
        return sorted(ordered, key=lambda s: s.urgent != (self._ahead <= 0))

    def _budget(self, n_decode: int) -> int:
        """Prompt tokens for this step: as many as nobody who reads along waits too long for.

        Where attention works in tiles, less than one costs several times as much a token once the context is long, so it is
        whole tiles, one at least unless that takes much too long: with a large model on a slow machine.
        """
        seconds = self.limits.step_seconds * (1 if n_decode else 2.5)
        tokens = max(LEAST_CHUNK, self.costs.chunk(n_decode, seconds))
        tile = self.limits.tile
        patience = self.limits.step_seconds * (TILE_STEPS if n_decode else 2.5 * TILE_STEPS)
        if tile and tile * self.costs.per_token() <= patience:
            return max(tile, (tokens + tile // 2) // tile * tile)
        return tokens

    def _batches(self, answers: list[Chunk], prompts: list[Chunk]) -> list[list[Chunk]]:
        """All in one batch, but where attention works in tiles: there answers go in batches below a tile, then prompts."""
        tile = self.limits.tile
        if not tile or sum(chunk.count for chunk in answers + prompts) < tile:
            return list(_packed(answers + prompts, self.limits.batch))
        return [*_packed(answers, tile - 1), *_packed(prompts, self.limits.batch)]

    def _room_for_prompts(self, n_decode: int) -> int:
        """Cells for prompt chunks; frees cold ones. At least one token is always possible: what runs was let in with room."""
        wanted = min(self.limits.batch, sum(s.pending for s in self.running))
        while self._free_cells < wanted and self._evict_one():
            pass
        return max(0, self._free_cells - n_decode)

    def _bound_cache(self) -> None:
        while self.cache.cold_cells > self.limits.cache_cells and self._evict_one():
            pass

    def _evict_one(self, keep: int = -1) -> bool:
        """Drops the least recently used finished sequence, or moves it to host RAM; False when there is none."""
        slot = next((s for s in self.cache.cold if s != keep), None)
        if slot is None:
            return False
        if self.host.capacity and self.cache.private_cells(slot) >= WORTH_SAVING:
            tokens = self.cache.tokens(slot)
            if not self.host.covers(tokens):
                self._moves.append(Save(slot, tokens))
        self.cache.remove(slot)
        self._release(slot)
        return True

    def _preempt_youngest(self) -> None:
        self.preemptions += 1
        self._put_back(self.running[-1])

    def _put_back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.cache.remove(sequence.slot)
        self._release(sequence.slot)
        sequence.slot = UNPLACED
        sequence.computed = 0
        self.submit(sequence)

    def _release(self, slot: int) -> None:
        self._moves.append(Remove(slot))
        self._free_slots.append(slot)


def _decodes(sequence: Sequence) -> bool:
    """Whether its prompt is computed and little of its answer is due: the token drawn last and what a grammar has forced."""
    return sequence.computed >= sequence.n_prompt - 1 and sequence.pending <= FORCED


def _packed(chunks: list[Chunk], size: int) -> Iterator[list[Chunk]]:
    """Splits chunks into batches of at most `size` tokens; a chunk that is larger has one for itself."""
    part: list[Chunk] = []
    filled = 0
    for chunk in chunks:
        if part and filled + chunk.count > size:
            yield part
            part, filled = [], 0
        part.append(chunk)
        filled += chunk.count
    if part:
        yield part


def _soon(sequence: Sequence) -> int:
    """The length a sequence will have before long."""
    return min(sequence.limit, len(sequence.tokens) + LOOKAHEAD)
