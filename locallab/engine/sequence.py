"""One request's state in the engine: what is known, what is computed, where it lies."""

from __future__ import annotations

import bisect
import dataclasses
import time
from typing import Literal

from locallab.engine.adapters import BASE, AdapterSet
from locallab.engine.answer import Answer
from locallab.engine.caller import LOCAL, Caller
from locallab.engine.media.runs import Run, position, run_at, until
from locallab.engine.request import CacheUse, Listener, SamplingParams, Usage
from locallab.engine.speculative import Lookup

UNPLACED = -1

RECENT = 0.2
"""Weight of the last token in the pace of an answer."""


@dataclasses.dataclass(eq=False, slots=True)
class Sequence:
    """Known tokens (prompt, then answer) of which the first `computed` have their KV in the llama sequence `slot`.

    `limit` is the length at which the answer ends: by max_tokens or the context. `caller` is who asked, with `adapters`; an
    `urgent` one goes first. `order` is its place in the queue, `turn_began` the length of the answer when it last left
    it. Its state is saved at the `boundaries`, unless it proved not `savable`; the `waiters` wait for what it computes now.
    `fetch` tells of what it needs from disk: "asked" while it is read, "done" once that has come or failed. `runs` are the
    pictures and sounds among its tokens.
    `lookup` makes drafts of its answer once that has begun; `accepted` and `rejected` count the tokens of those.
    `cache` is what the prefix cache had of its prompt, once that is placed. `submitted`, `began`, `first_token` and
    `last_token` are the times (time.perf_counter) at which it was made, at which the first step of its prompt began, and at
    which its first and last tokens became known, `pace` the mean of the seconds from one to the next, the last ones above all.
    """

    id: int
    tokens: list[int]
    n_prompt: int
    limit: int
    answer: Answer
    listener: Listener
    urgent: bool = False
    caller: Caller = LOCAL
    adapters: AdapterSet = BASE
    computed: int = 0
    slot: int = UNPLACED
    cache: CacheUse | None = None
    order: int = 0
    turn_began: int = 0
    runs: tuple[Run, ...] = ()
    lookup: Lookup | None = None
    accepted: int = 0
    rejected: int = 0
    boundaries: list[int] = dataclasses.field(default_factory=list)
    savable: bool = True
    waiters: list[Sequence] = dataclasses.field(default_factory=list)
    fetch: Literal["", "asked", "done"] = ""
    submitted: float = dataclasses.field(default_factory=time.perf_counter)
    began: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    pace: float = 0.0

    def start_over(self) -> None:
        """Compute it from its first token on, wherever it was."""
        self.slot = UNPLACED
        self.computed = 0
        self.fetch = ""
        self.waiters.clear()

    @property
    def owner(self) -> str:
        """The owner of its prefixes: the caller's, with the mark of the adapters that they are computed with."""
        return self.caller.owner + self.adapters.mark

    def look_up(self, tokens: list[int]) -> None:
        """Show the next tokens of the answer to what makes drafts of those behind."""
        if self.lookup is None:
            self.lookup = Lookup(self.tokens, self.params.prediction)
        self.lookup.read(tokens)

    def accept(self, count: int) -> None:
        """Count the next `count` tokens as computed: they were drafted, and are right."""
        self.accepted += count
        self.rejected -= count
        self.computed += count

    def pass_boundaries(self) -> int:
        """Drop the boundaries up to what is computed, and return the last of them; 0 without one."""
        reached = bisect.bisect_right(self.boundaries, self.computed)
        last = self.boundaries[reached - 1] if reached else 0
        del self.boundaries[:reached]
        return last

    def position(self, index: int) -> int:
        """Return the position in the context of the token at `index`."""
        return position(self.runs, index) if self.runs else index

    @property
    def run(self) -> Run | None:
        """The picture or sound that is to be computed next; None for text."""
        return run_at(self.runs, self.computed) if self.runs else None

    @property
    def unencoded(self) -> list[Run]:
        """The pictures and sounds that are still to be encoded and computed."""
        return [run for run in self.runs if run.end > self.computed and run.embeddings is None]

    @property
    def texts(self) -> list[int]:
        """Its tokens, without pictures and sounds."""
        return [token for token in self.tokens if token >= 0] if self.runs else self.tokens

    def needs(self, run: Run) -> bool:
        """Tell whether it cannot go on without what `run` stands for."""
        return any(each.key == run.key for each in self.unencoded)

    @property
    def awaits(self) -> bool:
        """True if nothing of it can be computed before something is encoded."""
        run = self.run
        return run is not None and run.embeddings is None

    @property
    def wants_room(self) -> bool:
        """True if a picture is next that must be computed at once, and can be."""
        return self.run is not None and self.run.whole and not self.awaits

    @property
    def at_hand(self) -> int:
        """The pending tokens that one chunk may have: text up to a picture, or what is left of that."""
        end = until(self.runs, self.computed) if self.runs else None
        return self.pending if end is None else min(self.pending, end - self.computed)

    def soon(self, more: int) -> int:
        """Return the length that it has after `more` tokens."""
        return min(self.limit, len(self.tokens) + more)

    def heard(self, seconds: float) -> None:
        """Learn that the last token came so many seconds after the one before."""
        self.pace += (RECENT if self.pace else 1.0) * (seconds - self.pace)

    @property
    def n_answer(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def pending(self) -> int:
        """Tokens that are known but not computed: 1 while decoding, more when a grammar forced some, or while its prompt (or
        what was preempted) is to be computed."""
        return len(self.tokens) - self.computed

    @property
    def may_draft(self) -> bool:
        """True while it decodes one token at a time, and nobody waits for its state as it is."""
        return self.pending == 1 and not self.boundaries and not self.unscored and not self.answer.certain

    @property
    def unscored(self) -> int:
        """Tokens of the prompt whose log probabilities are wanted and not known yet."""
        return self.answer.unscored(self.n_prompt)

    @property
    def params(self) -> SamplingParams:
        return self.answer.params

    @property
    def cached(self) -> int:
        return self.cache.hit if self.cache else 0

    @property
    def usage(self) -> Usage:
        began, first, last = self.began, self.first_token, self.last_token
        prompt_seconds = 0.0 if began is None or first is None else first - began
        answer_seconds = 0.0 if first is None or last is None else last - first
        tokens = (self.n_prompt, self.n_answer, self.cached)
        return Usage(*tokens, prompt_seconds, answer_seconds, self.accepted, self.rejected)

    @property
    def usage_so_far(self) -> Usage:
        """The usage of a request that ends early, whose prompt may not have been computed in full."""
        prompt = self.n_prompt if self.n_answer else min(self.computed, self.n_prompt)
        return dataclasses.replace(self.usage, prompt_tokens=prompt, cached_tokens=min(self.cached, prompt))
