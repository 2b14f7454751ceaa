"""CPU time by process: what a turn cost its server, and whether something else was running that spoils the comparison."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds of one process since it began."""

    session: int
    seconds: float


def by_process() -> dict[int, Spent]:
    """Every process that can be seen; empty on systems without /proc."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = path.read_text(errors="replace").rpartition(")")[2].split()  # a name may hold spaces and brackets
            ticks = int(fields[11]) + int(fields[12])
            found[int(path.parent.name)] = Spent(int(fields[3]), ticks / os.sysconf("SC_CLK_TCK"))
    return found


def split(
    before: Mapping[int, Spent], after: Mapping[int, Spent], *, session: int, besides: Collection[int]
) -> tuple[float, float]:
    """CPU seconds spent between the two readings: in `session`, and by all the rest except the processes `besides`."""
    inside = outside = 0.0
    for pid, spent in after.items():
        seconds = spent.seconds - (before[pid].seconds if pid in before else 0.0)
        if spent.session == session:
            inside += seconds
        elif pid not in besides:
            outside += seconds
    return inside, outside
