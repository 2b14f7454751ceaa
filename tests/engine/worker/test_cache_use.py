"""Each request is told once, before all else, what the prefix cache had of its prompt."""

from __future__ import annotations

import pytest

from locallab.engine.request import CacheUse
from tests.support.worker_rig import Rig

PROMPT = list(range(1, 31))


def use(rig: Rig, id: int) -> CacheUse:
    """Return what the request was told; it is its first event, and has nothing else."""
    first, *rest = rig.events[id]
    assert first.cache is not None and not (first.text or first.token_ids or first.finish_reason or first.usage)
    assert all(event.cache is None for event in rest)
    assert rest[-1].usage is not None and rest[-1].usage.cached_tokens == first.cache.hit
    return first.cache


def asked(rig: Rig, prompt: list[int], **params: object) -> CacheUse:
    id = rig.submit(prompt, **params)  # type: ignore[arg-type]
    rig.drain()
    return use(rig, id)


def test_the_reason_is_where_the_hit_ends() -> None:
    rig = Rig()
    assert asked(rig, PROMPT) == CacheUse(0, 30, "none", "first time", 0)
    assert asked(rig, PROMPT) == CacheUse(29, 30, "resident", "end", 29)
    assert asked(rig, [*PROMPT[:20], 99, 98, 97]) == CacheUse(20, 23, "resident", "diverged", 20)
    assert asked(rig, [99, 98, 97]) == CacheUse(0, 3, "none", "first time", 0)


def test_what_was_moved_to_host_memory_is_told_so() -> None:
    rig = Rig(cells=256, cache_cells=0, host_bytes=1 << 20)
    prompt = [i % 200 + 1 for i in range(120)]
    asked(rig, prompt)
    asked(rig, [250] * 20)  # after its admission nothing finished stays in the pool
    assert asked(rig, prompt) == CacheUse(119, 120, "host", "end", 119)


def test_a_prompt_whose_logprobs_are_wanted_is_not_looked_up() -> None:
    rig = Rig()
    asked(rig, PROMPT)
    id = rig.submit(PROMPT, logprobs=0, prompt_logprobs=True)
    rig.drain()
    assert all(event.cache is None for event in rig.events[id]) and rig.last(id).usage.cached_tokens == 0  # type: ignore[union-attr]


def test_a_preempted_request_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locallab.engine.scheduler.LOOKAHEAD", 1)
    rig = Rig(cells=64, parallel=4, cache_cells=0)
    ids = [rig.submit([first] * 8, max_tokens=40) for first in (1, 2, 3)]
    rig.drain()
    assert rig.scheduler.preemptions > 0
    assert [use(rig, id) for id in ids] == [CacheUse(0, 8, "none", "first time", 0)] * 3


def test_a_request_that_is_never_computed_is_told_nothing() -> None:
    rig = Rig(parallel=1)
    rig.submit(PROMPT)
    waiting = rig.submit([7, 8, 9])
    rig.step()
    rig.cancel(waiting)
    rig.drain()
    assert [event.finish_reason for event in rig.events[waiting]] == ["cancelled"]
