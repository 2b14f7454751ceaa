"""What a pool has done."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Counts since the start, `load_seconds` of all loads together; `loading` models are fetched, loaded or wait for that."""

    loads: int = 0
    failures: int = 0
    unloads: int = 0
    load_seconds: float = 0.0
    loading: int = 0
