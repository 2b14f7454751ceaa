"""What an engine does now, for people who watch.

The engine's thread makes a view between two steps, when it is asked to by a command: requests and the prefix tree change with
every step, and no other thread may walk them. So a view is whole, and costs nothing while nobody asks for one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Literal

from locallab.engine.caller import Caller
from locallab.engine.kv_map import KvMap, kv_map
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import UNPLACED, Sequence
from locallab.engine.totals import Totals

State = Literal["waiting", "prefill", "decode"]
"""In the queue; its prompt is computed; its answer is."""

MOST_WAITING = 256
"""Requests of the queue in a view, the next ones first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestView:
    """One request. `id` is its own among those of its engine. Of its tokens, prompt and answer, the first `computed_tokens` are
    computed or taken from the prefix cache, as `cached_tokens` of the prompt were. Its age is that since it was submitted;
    `ttft_seconds` after that its first token came."""

    id: int
    caller: Caller
    adapters: tuple[str, ...] = ()
    state: State
    prompt_tokens: int
    cached_tokens: int = 0
    computed_tokens: int = 0
    answer_tokens: int = 0
    age_seconds: float
    ttft_seconds: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """An engine at the time `at` (time.perf_counter). Of each two views the difference of `prompt_tokens` are the tokens of
    prompts computed in between, that of `answer_tokens` those of answers, and that of `step_seconds` is the duration of as many
    steps as `steps` differ by. Only for the first, what a request loses by leaving early may be taken off again.

    `requests` are all that run and the next MOST_WAITING of those that wait. Prefixes take `stored_bytes` of host RAM, of
    `stored_limit`. `kv` is None where no text is made."""

    at: float
    running: int
    waiting: int
    requests: tuple[RequestView, ...]
    prompt_tokens: int
    answer_tokens: int
    steps: int
    step_seconds: float
    stored_bytes: int = 0
    stored_limit: int = 0
    kv: KvMap | None = None


def view_of(scheduler: Scheduler, totals: Totals) -> EngineView:
    """Return a view of what the scheduler has."""
    now, cache = time.perf_counter(), scheduler.cache
    begun = sum(max(0, min(s.computed, s.n_prompt) - s.cached) for s in scheduler.running if not s.answer.begun)
    return EngineView(
        at=now,
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        requests=tuple(_request(each, now) for each in (*scheduler.running, *scheduler.waiting[:MOST_WAITING])),
        prompt_tokens=totals.prompt_tokens - totals.cached_tokens + begun,
        answer_tokens=totals.completion_tokens,
        steps=totals.steps,
        step_seconds=totals.step.sum,
        stored_bytes=cache.size,
        stored_limit=cache.capacity,
        kv=kv_map(cache, scheduler.limits),
    )


def held_of(prompts: Iterable[tuple[list[int], str]], scheduler: Scheduler) -> list[int]:
    """Return how many tokens of each prompt the prefix cache has computed, of its owner; at most all but the last."""
    return [scheduler.cache.has(tokens, owner) for tokens, owner in prompts]


def _request(sequence: Sequence, now: float) -> RequestView:
    return RequestView(
        id=sequence.id,
        caller=sequence.caller,
        adapters=sequence.adapters.names,
        state=_state(sequence),
        prompt_tokens=sequence.n_prompt,
        cached_tokens=sequence.cached,
        computed_tokens=sequence.computed,
        answer_tokens=sequence.n_answer,
        age_seconds=now - sequence.submitted,
        ttft_seconds=None if sequence.first_token is None else sequence.first_token - sequence.submitted,
    )


def _state(sequence: Sequence) -> State:
    if sequence.slot == UNPLACED:
        return "waiting"
    return "prefill" if sequence.computed < sequence.n_prompt else "decode"
