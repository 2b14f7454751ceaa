"""The replicas of a cluster as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REPLICA = ("model", "replica", "node", "process", "running", "waiting", "prompt tokens", "cached", "prefixes", "up")


def replica(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a replica, as /system/info describes it."""
    from locallab.units import duration

    prompt, cached = facts["prompt_tokens"], facts["cached_tokens"]
    names = ("model", "id", "node", "pid", "running", "waiting")
    return (
        *(str(facts[name]) for name in names),
        f"{prompt:,}",
        f"{cached / prompt:.0%}" if prompt else "-",
        str(facts["prefixes"]),
        duration(facts["uptime_seconds"]),
    )
