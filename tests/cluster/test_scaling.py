"""How many replicas there should be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from locallab.cluster.scaling import FIGURE, QueuedTokens, wanted


@given(st.integers(0, 10**7), st.integers(0, 100), st.integers(1, 10**5), st.integers(0, 50))
def test_replicas_follow_the_work(work: int, waiting: int, each: int, now: int) -> None:
    count = wanted(work, waiting, each, now)
    assert (count == 0) == (work == 0 and waiting == 0)
    assert work <= count * each and (not waiting or count > now)
    assert count <= max(1, -(-work // each), now + 1)


def context(**more: Any) -> Any:
    defaults = {"aggregated_metrics": {}, "total_queued_requests": 0, "total_num_requests": 0}
    return SimpleNamespace(**{**defaults, "current_num_replicas": 2, "target_num_replicas": 2, **more})


def test_the_policy_adds_up_what_replicas_record() -> None:
    policy = QueuedTokens(1000)
    assert policy(context(aggregated_metrics={FIGURE: {"a": 1500.0, "b": 900.0}}))[0] == 3
    assert policy(context(aggregated_metrics={FIGURE: {"a": 0.0}}))[0] == 0
    assert policy(context(aggregated_metrics={FIGURE: {"a": 10.0}}, total_queued_requests=4))[0] == 3


def test_replicas_that_have_told_nothing_yet_stay() -> None:
    assert QueuedTokens(1000)(context(total_num_requests=3))[0] == 2
    assert QueuedTokens(1000)(context(aggregated_metrics=None))[0] == 0
