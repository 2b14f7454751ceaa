"""How many replicas a model should have: as many as the tokens of the work that it has ask for. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FIGURE = "work_tokens"
"""The name of what each replica records: the tokens of its work."""


def wanted(work: float, waiting: float, each: int, now: int) -> int:
    """Return the replicas that this much work asks for, with `each` tokens for one. Requests that wait at the router, for which
    no replica has room, ask for one more than there are `now`."""
    if not work and not waiting:
        return 0
    return max(1, math.ceil(work / each), now + 1 if waiting else 0)


class QueuedTokens:
    """Ray Serve's policy: it gets what the replicas have recorded, averaged, and returns how many there should be."""

    def __init__(self, queued_tokens: int) -> None:
        self._each = queued_tokens

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        recorded: Mapping[Any, float] = (context.aggregated_metrics or {}).get(FIGURE, {})
        waiting = context.total_queued_requests or 0
        if not recorded and context.total_num_requests:  # replicas that have not told anything yet
            return max(1, context.target_num_replicas), {}
        return wanted(sum(recorded.values()), waiting, self._each, context.current_num_replicas), {}
