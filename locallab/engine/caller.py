"""Who asks: what an engine shares its time, its queue and its prefixes by."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """One client, whatever it asks: `id` is "key:ID" or "address:IP", and stays the same between requests and restarts.

    Callers share the engine's time in the ratio of their `weight`. A caller uses the prefixes of its `owner` alone, "" being
    the one that all share.
    """

    id: str = ""
    weight: int = 1
    owner: str = ""


LOCAL = Caller()
"""The program that the engine is part of."""
