"""Decides what the next step computes. Pure: never touches llama_cpp, so that every rule can be tested by itself.

There are no prefill and decode phases. Each running sequence has known and computed tokens; a step moves `computed` towards
`known` under one token budget: first a token for each sequence that is decoding, then the other tokens that a grammar has
forced on it, then chunks of prompts.

The life of a sequence: submit -> waiting -> (admit) running -> finish or cancel. When the KV pool is full, the youngest running
one goes back to waiting and is recomputed later. A finished sequence stays in the prefix cache until its room is needed.
Urgent ones (somebody is typing) go ahead, within bounds: others are admitted after a few, and get half of the prompt budget.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator

from locallab.engine.cache import NO_MATCH, Match, PrefixCache
from locallab.engine.costs import StepCosts
from locallab.engine.host_cache import HostCache, StoredMatch
from locallab.engine.limits import Limits
from locallab.engine.request import CacheUse, MissReason, Tier
from locallab.engine.sequence import UNPLACED, Sequence
from locallab.engine.step_plan import FORCED, Chunk, Copy, Move, Remove, Restore, Save, StepPlan, cut

WORTH_WAITING = 8
"""Least gain in tokens for which a sequence waits for another's prefill, or a prefix is restored from host RAM."""
WORTH_SAVING = 64
"""Least cells that a finished sequence holds alone to be saved to host RAM rather than dropped."""
TILE_STEPS = 10
"""A tile may take this many times the length of a step: less than a tile hardly takes less time, or even more."""
LEAST_CHUNK = 16
"""Least prompt tokens in a step, however slow the machine."""
LOOKAHEAD = 128
"""Answer tokens for which an admitted request must have room: preempting costs more than waiting."""
ADMISSIONS = 64
"""Waiting requests considered in one step, so that a long queue costs no time between steps."""
OVERTAKING = 4
"""Urgent requests in a row that are admitted ahead of waiting others; then one of the others goes first."""


class Scheduler:
    """Holds every sequence of one engine. Not thread-safe: only the engine's thread calls it. Every method mutates it."""

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
        self._overtaken = 0  # urgent sequences admitted ahead of others since the last one of those
        self._ahead = 0  # prompt tokens by which urgent sequences are ahead of others, while there are both

    def submit(self, sequence: Sequence) -> None:
        """Queue a new sequence, or put one back at the place of its age. Urgent ones come before all others."""
        bisect.insort(self.waiting, sequence, key=lambda s: (not s.urgent, s.id))

    def finish(self, sequence: Sequence) -> None:
        """Take an ended sequence out, waiting or running; what it computed stays in the prefix cache."""
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
        """Add the next known tokens of a running sequence."""
        sequence.tokens += tokens
        self.cache.extend(sequence.slot, tokens)

    def plan(self) -> StepPlan:
        """Admit, preempt and evict, and return the next step. Its tokens count as computed only after `commit`."""
        decoding = self._make_room_for_decode()
        self._admit()
        while self.cache.cold_cells > self.limits.cache_cells and self._evict_one():
            pass  # not before the admission: what a waiting request shares is live now
        answers = list(self._answer_chunks(decoding))
        prompts = list(self._prompt_chunks(decoding, sum(chunk.count for chunk in answers)))
        moves, self._moves = self._moves, []
        return StepPlan(moves, self._batches(answers, prompts))

    def commit(self, chunks: list[Chunk]) -> None:
        """Count the chunks of a decoded batch as computed."""
        for chunk in chunks:
            chunk.sequence.computed += chunk.count
            self.cache.advance(chunk.sequence.slot, chunk.count)

    def relieve(self) -> bool:
        """Free some KV room after llama.cpp found none for the plan; return False when nothing is left to free."""
        if self._evict_one():
            return True
        if len(self.running) < 2:
            return False
        self._preempt_youngest()
        return True

    def reset(self) -> None:
        """Forget every sequence and prefix: the content of the KV pool is lost."""
        self.cache = PrefixCache(self.limits.rewind_limit)
        self.running.clear()
        self.waiting.clear()
        self._free_slots = list(range(self.limits.slots))[::-1]
        self._moves.clear()

    def unrestored(self, sequence: Sequence) -> None:
        """Queue a sequence again whose saved state could not be restored; it is computed without it."""
        self._put_back(sequence)

    @property
    def _free_cells(self) -> int:
        return self.limits.cells - self.cache.used

    def _make_room_for_decode(self) -> list[Sequence]:
        """Make room for a token of each sequence that decodes, and return these: their prompt is computed, and little of the
        answer is pending (the token sampled last, and what a grammar has forced)."""
        while True:
            decoding = [s for s in self.running if s.computed >= s.n_prompt - 1 and s.pending <= FORCED]
            if len(decoding) <= self._free_cells:
                return decoding
            if not self._evict_one():
                self._preempt_youngest()

    def _admit(self) -> None:
        """Move waiting sequences to running, oldest first. One that waits for a prefix lets others pass; one that waits for
        room does not, so that it gets it."""
        for sequence in self._candidates():
            ready, known = (NO_MATCH, NO_MATCH) if sequence.unscored else self.cache.match(sequence.tokens)
            if known.length - ready.ready >= WORTH_WAITING:
                continue
            saved = None if sequence.unscored else self.host.match(sequence.tokens)
            room = self._free_cells + self.cache.cold_cells  # a saved state is first restored whole
            if saved and (saved.length < ready.ready + WORTH_WAITING or len(saved.stored.tokens) > room):
                saved = None
            shared = NO_MATCH if saved else ready
            if not self._fits(sequence, shared):
                return
            self._place(sequence, shared)
            if saved:
                self._restore(sequence, saved)

    def _candidates(self) -> Iterator[Sequence]:
        """Yield waiting sequences in the order of admission while there is a place: urgent ones first, but not too many in a
        row."""
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

    def _fits(self, sequence: Sequence, match: Match) -> bool:
        """Tell whether there is room for a sequence beside what the running ones need soon; alone, it always fits."""
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
        sequence.slot = slot
        self._begin_at(sequence, match.ready, "resident")
        bisect.insort(self.running, sequence, key=lambda s: s.id)

    def _restore(self, sequence: Sequence, saved: StoredMatch) -> None:
        while self._free_cells < len(saved.stored.tokens) and self._evict_one():
            pass
        self.host.touch(saved.stored)
        self._moves.append(Restore(sequence, saved.stored, saved.length))
        self.cache.advance(sequence.slot, saved.length)
        self._begin_at(sequence, saved.length, "host")

    def _begin_at(self, sequence: Sequence, computed: int, tier: Tier) -> None:
        sequence.computed = computed
        if sequence.began is None and not sequence.unscored:  # a prefix found after a preemption was computed for this request
            total = sequence.n_prompt
            reason: MissReason = "end" if computed == total - 1 else "diverged" if computed else "first time"
            sequence.cache = CacheUse(computed, total, tier if computed else "none", reason, computed)

    def _answer_chunks(self, decoding: list[Sequence]) -> Iterator[Chunk]:
        """Yield a token for each, and of forced tokens as many more as the budget has room for, oldest sequence first."""
        n_decode = len(decoding)
        spare = sum(s.pending for s in decoding) - n_decode
        if spare:
            spare = min(spare, self._budget(n_decode), self.limits.batch - n_decode, self._room_for_prompts(n_decode))
        for sequence in decoding:
            count = 1 + max(0, min(sequence.pending - 1, spare))
            spare -= count - 1
            yield Chunk.of(sequence, count)

    def _prompt_chunks(self, decoding: list[Sequence], n_decode: int) -> Iterator[Chunk]:
        """Spend the rest of the budget on prompts."""
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
        """Return prompts in the order in which they get budget: in turns the oldest first and the shortest first. Urgent ones
        go before all others while those have not had fewer tokens."""
        self._oldest_first = not self._oldest_first
        ordered = prefilling if self._oldest_first else sorted(prefilling, key=lambda s: s.pending)
        if all(not s.urgent for s in ordered) or all(s.urgent for s in ordered):
            self._ahead = 0
            return ordered
        return sorted(ordered, key=lambda s: s.urgent != (self._ahead <= 0))

    def _budget(self, n_decode: int) -> int:
        """Return the prompt tokens of this step: as many as keep it short for those who read their answers.

        Where attention works in tiles, a part of one costs several times as much per token once the context is long. So the
        budget is whole tiles, at least one, unless a tile takes far too long (a large model on a slow machine).
        """
        seconds = self.limits.step_seconds * (1 if n_decode else 2.5)
        tokens = max(LEAST_CHUNK, self.costs.chunk(n_decode, seconds))
        tile = self.limits.tile
        patience = self.limits.step_seconds * (TILE_STEPS if n_decode else 2.5 * TILE_STEPS)
        if tile and tile * self.costs.per_token() <= patience:
            return max(tile, (tokens + tile // 2) // tile * tile)
        return tokens

    def _batches(self, answers: list[Chunk], prompts: list[Chunk]) -> list[list[Chunk]]:
        """Put all chunks into one batch; where attention works in tiles, answers into batches below a tile, then prompts."""
        tile = self.limits.tile
        if not tile or sum(chunk.count for chunk in answers + prompts) < tile:
            return list(_packed(answers + prompts, self.limits.batch))
        return [*_packed(answers, tile - 1), *_packed(prompts, self.limits.batch)]

    def _room_for_prompts(self, n_decode: int) -> int:
        """Evict for prompt chunks and return the cells they may use: at least one, since running sequences were admitted with
        room."""
        wanted = min(self.limits.batch, sum(s.pending for s in self.running))
        while self._free_cells < wanted and self._evict_one():
            pass
        return max(0, self._free_cells - n_decode)

    def _evict_one(self, keep: int = -1) -> bool:
        """Drop the least recently used finished sequence, or save it to host RAM first; return False when there is none."""
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


def _packed(chunks: list[Chunk], size: int) -> Iterator[list[Chunk]]:
    """Split chunks into batches of at most `size` tokens; a larger chunk gets a batch of its own."""
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
    """Return the length a sequence will have before long."""
    return min(sequence.limit, len(sequence.tokens) + LOOKAHEAD)
