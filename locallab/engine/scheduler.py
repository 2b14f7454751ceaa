"""Decides what the next step computes. Pure: never touches llama_cpp, so that every rule can be tested by itself.

There are no prefill and decode phases: a step moves the computed tokens of running sequences towards the known ones under one
budget, first a token for each that is decoding, then other tokens that a grammar has forced, then chunks of prompts.

The life of a sequence: submit -> waiting -> (admit) running -> finish or cancel. When there is no room for all, one goes back
to waiting: the youngest when the KV pool is full, the one whose turn has lasted longest when others wait for a place. What it
computed is saved. A finished sequence stays in the prefix cache until its room is needed. Urgent ones (somebody is typing) go
ahead, within bounds: others are admitted after a few, and get half of the prompt budget.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from locallab.engine import layout
from locallab.engine.cache import NO_MATCH, Match, PrefixCache
from locallab.engine.chunking import Chunking
from locallab.engine.costs import StepCosts
from locallab.engine.fairness import Shares, gives_way, held, longest_turn, youngest
from locallab.engine.follower import Follower
from locallab.engine.limits import Limits
from locallab.engine.media.runs import uncut
from locallab.engine.saving import Saving
from locallab.engine.sequence import UNPLACED, Sequence
from locallab.engine.step_plan import FORCED, Chunk, Copy, Fetch, Move, Relocate, Remove, Restore, Save, StepPlan
from locallab.engine.turns import Turns
from locallab.engine.waiting import Waiting

WORTH_WAITING = 8
"""Least gain in tokens for which a sequence waits for another's prefill, or a prefix is restored from host RAM."""
LOOKAHEAD = 128
"""Answer tokens for which an admitted request must have room: preempting costs more than waiting."""
TURN = 128
"""Answer tokens after which a request lets another have its place, if one waits and there is no other place."""


class Scheduler:
    """Holds every sequence of one engine; `follower` has those of its draft model. Not thread-safe; every method mutates it."""

    def __init__(self, limits: Limits, costs: StepCosts, follower: Follower | None = None) -> None:
        self.limits = limits
        self.costs = costs
        self.running: list[Sequence] = []
        self.waiting = Waiting()
        self.preemptions = 0
        self.shares = Shares()
        self._turns = Turns(costs, limits.step_seconds)
        self._chunking = Chunking(limits, costs, self.shares, follower)
        self.cache = PrefixCache(cuts=limits.cuts, shares=limits.shares, capacity=limits.cache_bytes)
        self._free_slots = list(range(limits.slots))[::-1]
        self._moves: list[Move] = []
        self._reserved = 0  # cells of this plan's restores, not counted by the cache before they have succeeded
        self._put_back_now: set[Sequence] = set()  # not admitted again by the same plan: their saves are still to be made
        self.saving = Saving(self.cache, costs)

    def submit(self, sequence: Sequence) -> None:
        """Queue a new sequence. Urgent ones come before all others."""
        edge = self.cache.edge(sequence.tokens, sequence.owner)  # all others have what is before it
        wanted = self.limits.boundaries(sequence.n_prompt, (*sequence.params.boundaries, edge))
        sequence.boundaries = sorted({uncut(sequence.runs, at) for at in wanted} - {0})
        self.shares.enter(sequence.caller)
        self.waiting.add(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take an ended sequence out, waiting or running; what it computed stays in the prefix cache."""
        self.shares.leave(sequence.caller)
        if sequence.slot == UNPLACED:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._chunking.drafting.leave(sequence)
        kept = self.cache.finish(sequence.slot)
        if kept and not (self.limits.cache_cells or self.cache.capacity):
            self.cache.remove(sequence.slot)
            kept = False
        if not kept:
            self._release(sequence.slot)
        sequence.slot = UNPLACED

    def append(self, sequence: Sequence, tokens: list[int]) -> None:
        """Add the next known tokens of a running sequence."""
        if self.limits.drafts:
            sequence.look_up(tokens)
        sequence.tokens += tokens
        self.cache.extend(sequence.slot, tokens)

    def verified(self, sequence: Sequence, count: int) -> None:
        """Count the next `count` known tokens of a sequence as computed: those of a draft that was right."""
        sequence.accept(count)
        self._advance(sequence, count)

    def plan(self) -> StepPlan:
        """Admit, preempt and evict, and return the next step. Its tokens count as computed only after `commit`."""
        self._reserved = 0
        self._put_back_now.clear()
        for sequence in self.running:
            sequence.waiters.clear()
        decoding = self._make_room_for_decode()
        self._take_turns()
        self._admit()
        while self.cache.cold_cells > self.limits.cache_cells and self._evict_one():
            pass  # not before the admission: what a waiting request shares is live now
        self._relocate()
        decoding, prefilling, others = self._turns.split(self.running, [s for s in decoding if s.slot != UNPLACED])
        decoding = self.shares.answers(decoding, prefilling, self.costs, self.limits.step_seconds)
        pending = sum(s.pending for s in self.running)
        room = self._room_for_prompts(len(decoding) + len(others)) if pending > len(decoding) else 0
        outputs = self.limits.outputs - len(self.running)
        answers = list(self._chunking.answers(decoding, room, min(outputs, self._free_cells - len(decoding) - len(others))))
        extra = sum(chunk.count for chunk in answers) - len(decoding)
        room, outputs = max(0, room - extra), max(0, outputs - extra)
        prompts = list(self._chunking.prompts(prefilling, answers, room, outputs, others))
        moves, self._moves = self._moves, []
        return StepPlan(moves, self._chunking.batches(answers, prompts), self._chunking.read([] if prefilling else decoding))

    def commit(self, chunks: list[Chunk]) -> list[Save]:
        """Count the chunks of a decoded batch as computed. Return what is to be saved now, before it is changed."""
        saves = []
        self.shares.spend(chunks)
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.computed += chunk.known
            self._advance(sequence, chunk.known)
            at = sequence.pass_boundaries()
            if at and self.cache.capacity and (self.limits.cuts or at == sequence.computed):
                saves.append(Save(sequence.slot, sequence.tokens[: sequence.computed], sequence.owner))
        return saves

    def restored(self, sequence: Sequence, start: int, end: int) -> None:
        """Count what was put back into a sequence's slot."""
        self._advance(sequence, end - start)

    def unrestored(self, sequence: Sequence, end: int) -> None:
        """Queue a sequence again whose first `end` tokens could not be put back; it is computed without them."""
        self.cache.drop(sequence.tokens[:end], sequence.owner)
        self._put_back(sequence)

    def unsaved(self, slot: int) -> None:
        """Note that a sequence's state could not be saved: nobody waits for it any more."""
        for sequence in (s for s in self.running if s.slot == slot):
            sequence.savable = False

    @property
    def idle(self) -> bool:
        """True if there is nothing to compute before something has been read from disk or encoded."""
        return all(s.awaits for s in self.running) and (bool(self.running) or self.waiting.fetches)

    def relieve(self) -> bool:
        """Free KV room when there is none for what is next; return False when nothing is left to free."""
        if self._evict_one():
            return True
        if len(self.running) < 2:
            return False
        self._preempt_youngest()
        return True

    def reset(self, keep: Iterable[Sequence] = ()) -> None:
        """Forget every sequence but those to `keep`, which are computed anew, and all that is cached but not in host RAM."""
        self._chunking.drafting.leave(*self.running)
        self.running.clear()
        self.waiting.clear()
        self.shares.clear()
        self.cache.clear()
        self._free_slots = list(range(self.limits.slots))[::-1]
        self._moves.clear()
        self.saving.clear()
        for sequence in keep:
            sequence.start_over()
            self.shares.enter(sequence.caller)
            self.waiting.put_back(sequence)

    @property
    def _free_cells(self) -> int:
        return self.limits.cells - self.cache.used - self._reserved if self.limits.pooled else 1 << 40

    def _advance(self, sequence: Sequence, count: int) -> None:
        """Count tokens as computed, and share the cells of those that another sequence has too."""
        slot, at = sequence.slot, sequence.position
        self._moves += [Copy(other, slot, at(start), at(end)) for other, start, end in self.cache.advance(slot, count)]

    def _make_room_for_decode(self) -> list[Sequence]:
        """Make room for a token of each sequence that decodes, and return these: their prompt is computed, and little of the
        answer is pending (the token sampled last, and what a grammar has forced)."""
        while True:
            decoding = [s for s in self.running if s.computed >= s.n_prompt - 1 and s.pending <= FORCED and s.run is None]
            if len(decoding) <= self._free_cells:
                return decoding
            if not self._evict_one():
                self._preempt_youngest()

    def _take_turns(self) -> None:
        """Put back the request whose turn has lasted longest, when others wait and every place is taken."""
        places = self.limits.parallel
        if not self.waiting or len(self.running) < places or max(s.n_answer - s.turn_began for s in self.running) < TURN // 4:
            return
        first = next(self.waiting.in_turn((), self.shares, held(self.running)))
        longest = longest_turn(first, self.running, TURN)
        if longest is not None and longest.limit - len(longest.tokens) > TURN // 4:
            self._end_turn(longest)

    def _end_turn(self, sequence: Sequence) -> None:
        self._put_back(sequence, save=True)
        self.waiting.to_the_end(sequence)

    def _admit(self) -> None:
        """Move waiting sequences to running, oldest first. One that waits for a prefix lets others pass; one that waits for
        room does not, so that it gets it."""
        if len(self.running) >= self.limits.parallel and not self.shares.contested:
            return
        for sequence in self.waiting.in_turn(self._put_back_now, self.shares, held(self.running)):
            found = self._match(sequence)
            if self._waits(sequence, found):
                continue
            found = self._make_way(sequence, found)
            if len(self.running) >= self.limits.parallel or not self._fits(sequence, found):
                return
            self._place(sequence, found)

    def _match(self, sequence: Sequence) -> Match:
        found = NO_MATCH if sequence.unscored else self.cache.match(sequence.tokens, sequence.owner)
        return found.uncut(sequence.runs, self.limits.cuts)

    def _make_way(self, sequence: Sequence, found: Match) -> Match:
        """Put back what other callers have beyond their share, as far as this one needs it; return what the cache has then."""
        while self.shares.contested:
            full = len(self.running) >= self.limits.parallel
            if not full and self._fits(sequence, found):
                break
            victim = gives_way(sequence, self.running, (lambda _: 1) if full else (lambda s: len(s.tokens)))
            if victim is None:
                break
            self._end_turn(victim)
            found = self._match(sequence)
        return found

    def _waits(self, sequence: Sequence, found: Match) -> bool:
        """Tell whether a sequence should wait: for one that computes what both begin with, or for the disk."""
        at_once = found.at_once(self.limits.shares)
        if found.on_disk and found.stored - at_once >= WORTH_WAITING:
            if sequence.fetch == "":
                sequence.fetch = "asked"
                self._moves.append(Fetch(sequence, found.stored))
            if sequence.fetch == "asked":
                return True
        if found.known - max(at_once, found.stored) < WORTH_WAITING:
            return False
        source = next(s for s in self.running if s.slot == found.source)
        if self.limits.shares:
            source.waiters.append(sequence)
            return True
        return self._waits_for_snapshot(sequence, source, found.known)

    def _waits_for_snapshot(self, sequence: Sequence, source: Sequence, length: int) -> bool:
        """Tell whether a running sequence will save its first `length` tokens for another; ask it to."""
        computed = self.cache.computed(source.slot)
        passed = source.computed >= length and computed != length  # perhaps only planned: a restore is not counted before
        if not (source.savable and self.limits.holds(length)) or (passed and not self.limits.cuts):
            return False
        if computed >= length:
            self._moves.append(Save(source.slot, source.tokens[:computed], source.owner))
        elif length not in source.boundaries:
            bisect.insort(source.boundaries, length)
        source.waiters.append(sequence)
        return True

    def _fits(self, sequence: Sequence, found: Match) -> bool:
        """Tell whether there is room for a sequence beside what the running ones need soon; alone, it always fits."""
        if not self.running or not self.limits.pooled:
            return True
        wanted = sum(s.soon(LOOKAHEAD) - self.cache.computed(s.slot) for s in self.running) + sequence.soon(LOOKAHEAD)
        wanted -= found.live if self.limits.shares else 0
        return self.cache.used - self.cache.cold_cells + wanted <= self.limits.cells

    def _place(self, sequence: Sequence, found: Match) -> None:
        """Give a sequence a slot with the longest prefix that is worth it."""
        at_once = found.at_once(self.limits.shares)
        restores = found.stored - at_once >= WORTH_WAITING and not found.on_disk
        restores = restores and self.costs.pays(found.stored, found.stored - at_once)
        self.waiting.remove(sequence)
        if self.limits.shares:
            sequence.slot = self._new_slot(sequence, at_once, keep=found.slot)
            self.cache.add(sequence.slot, sequence.tokens, at_once, sequence.owner)
            self.cache.use(found.slot)
            if at_once:
                self._moves.append(Copy(found.slot, sequence.slot, 0, sequence.position(at_once)))
        elif at_once and not restores:
            self._take_over(sequence, found.finished_slot, at_once)
        else:
            at_once = 0
            sequence.slot = self._new_slot(sequence, found.stored if restores else 0)
            self.cache.add(sequence.slot, sequence.tokens, owner=sequence.owner)
        computed = found.stored if restores else at_once
        if restores:
            self._restore(sequence, at_once, found.stored)
        self._begin_at(sequence, computed, found)
        sequence.fetch = ""
        bisect.insort(self.running, sequence, key=lambda s: s.id)

    def _take_over(self, sequence: Sequence, slot: int, length: int) -> None:
        """Let a sequence go on in the slot of a finished one, whose tokens behind `length` are saved before they go."""
        held = self.cache.computed(slot)
        if held > length:
            self._save(slot, held - length)
            self._moves.append(Remove(slot, sequence.position(length)))
        self.cache.take_over(slot, sequence.tokens, length, sequence.owner)
        self.saving.forget(slot)
        sequence.slot = slot

    def _restore(self, sequence: Sequence, start: int, end: int) -> None:
        while self._free_cells < end - start and self._evict_one():
            pass
        self._reserved += end - start
        self.cache.use_stored(sequence.tokens, end, sequence.owner)
        self._moves.append(Restore(sequence, start, end))

    def _begin_at(self, sequence: Sequence, computed: int, found: Match) -> None:
        sequence.computed = computed
        sequence.turn_began = sequence.n_answer
        sequence.pass_boundaries()
        if not self.limits.cuts and found.common - computed >= WORTH_WAITING and found.common not in sequence.boundaries:
            bisect.insort(sequence.boundaries, found.common)  # here prompts part: the next one finds a snapshot
        if sequence.began is None and not sequence.unscored:  # what is found after a preemption was computed for this request
            sequence.cache = found.use(computed, sequence.n_prompt, self.limits, sequence.fetch != "")

    def _new_slot(self, sequence: Sequence, computed: int, keep: int = -1) -> int:
        """Return a free slot; evict for it if there is none. Where ids matter, choose by what is to be computed."""
        if not self._free_slots:
            self._evict_one(keep)
        if self.limits.layout == "unified":
            return self._free_slots.pop()
        pending = (len(sequence.tokens) - computed) * self.costs.per_token() / self.limits.step_seconds
        slot = layout.stream_for_prompt(self._free_slots, pending)
        self._free_slots.remove(slot)
        return slot

    def _relocate(self) -> None:
        """Close a gap among the streams of answers, if that pays."""
        if self.limits.layout == "unified":
            return
        answering = {s.slot: s for s in self.running if s.computed >= s.n_prompt and s.computed == self.cache.computed(s.slot)}
        free = [*self._free_slots, *self.cache.finished]
        figures = {slot: (s.computed, s.limit - len(s.tokens)) for slot, s in answering.items()}
        move = layout.relocation(figures, free, self.costs.decode(1), 2 * self.costs.move_seconds)
        if move is None:
            return
        source, target = move
        if target not in self._free_slots:
            self._evict(target)
        self._free_slots.remove(target)
        self.cache.relocate(source, target)
        answering[source].slot = target
        self._moves.append(Relocate(answering[source], source))
        self._free_slots.append(source)

    def _room_for_prompts(self, n_decode: int) -> int:
        """Evict for prompt chunks and return the cells they may use: at least one, since running sequences were admitted with
        room."""
        wanted = min(self.limits.batch, sum(s.pending for s in self.running))
        while self._free_cells < wanted and self._evict_one():
            pass
        return max(0, self._free_cells - n_decode)

    def _evict_one(self, keep: int = -1) -> bool:
        """Drop the least recently used finished sequence, or save it to host RAM first; return False when there is none."""
        slot = next((s for s in self.cache.finished if s != keep), None)
        if slot is None:
            return False
        self._evict(slot)
        return True

    def _evict(self, slot: int) -> None:
        self._save(slot, self.cache.private_cells(slot))
        self.cache.remove(slot)
        self._release(slot)

    def _save(self, slot: int, lost: int) -> None:
        if save := self.saving.before_loss(slot, lost):
            self._moves.append(save)

    def _preempt_youngest(self) -> None:
        self.preemptions += 1
        self._put_back(youngest(self.running) if self.shares.contested else self.running[-1], save=True)

    def _put_back(self, sequence: Sequence, save: bool = False) -> None:
        self.running.remove(sequence)
        self._chunking.drafting.leave(sequence)
        if save:
            self._save(sequence.slot, self.cache.private_cells(sequence.slot))
        self.cache.remove(sequence.slot)
        self._release(sequence.slot)
        sequence.start_over()
        self._put_back_now.add(sequence)
        self.waiting.put_back(sequence)

    def _release(self, slot: int) -> None:
        self._moves.append(Remove(slot))
        self._free_slots.append(slot)
        self.saving.forget(slot)
