"""What was measured as a Markdown table, and what follows from it for the choice of a KV layout. Pure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

POOL, PREFIX, STREAMS, GAP = "pool", "pool, one prefix", "streams", "streams, a gap"
COLUMNS = (POOL, PREFIX, STREAMS, GAP)

DECODE, COMPUTE = "decode", "compute"

STATE_IO = ("save", "restore", "save on the device", "restore from the device", "move", "seq_cp")
"""What gives a prefix to a sequence without computing it."""

ENOUGH = 0.75
"""Share of the best tokens/s at which further sequences may as well wait."""

NOISE = 0.03
"""Share by which two medians of one run differ anyway."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of one operation, by the column of its layout: with so many sequences that hold so many tokens each."""

    what: str
    sequences: int
    tokens: int
    ms: Mapping[str, float]


def table(rows: Sequence[Row]) -> str:
    """Return all rows as a Markdown table. What moves a state is told as a share of computing it, too."""
    computed = {(row.tokens, column): ms for row in rows if row.what == COMPUTE for column, ms in row.ms.items()}
    head = ["ms", "sequences", "tokens each", *COLUMNS, f"{POOL} / {STREAMS}"]
    lines = [_line(head), _line(["---", *["--:"] * (len(head) - 1)])]
    for row in rows:
        cells = (_cell(row, column, computed.get((row.tokens, column))) for column in COLUMNS)
        ratio = f"{row.ms[POOL] / row.ms[STREAMS]:.2f}" if {POOL, STREAMS} <= row.ms.keys() and row.ms[STREAMS] else ""
        lines.append(_line([row.what, str(row.sequences), f"{row.tokens:,}", *cells, ratio]))
    return "\n".join(lines)


def constants(rows: Sequence[Row], gap: float) -> list[str]:
    """Return what the rows say about the constants of engine/layout.py, whose GAP is `gap`; nothing without decode steps."""
    decode = [row for row in rows if row.what == DECODE]
    single = {row.tokens: row.ms[STREAMS] for row in decode if row.sequences == 1}
    gaps = [(row.ms[GAP] - row.ms[STREAMS]) / single[row.tokens] for row in decode if GAP in row.ms and row.tokens in single]
    lines = [f"GAP: {statistics.median(gaps):.2f} of a step with one token (engine/layout.py: {gap:g})"] if gaps else []
    counts = sorted({row.sequences for row in decode})
    for count in counts[1:]:
        mine = [row for row in decode if row.sequences == count]
        lines.append(f"{count} sequences: {_winner(mine, POOL)}; with one prefix {_winner(mine, PREFIX)}")
    if speeds := {count: _speed(decode, count) for count in counts}:
        enough = min(count for count in counts if speeds[count] >= ENOUGH * max(speeds.values()))
        told = ", ".join(f"{count}: {speed:,.0f}" for count, speed in speeds.items())
        lines.append(f"tokens/s in streams {told}: {enough} have {ENOUGH:.0%} of the best (ENOUGH_CPU, ENOUGH_GPU)")
    return lines


def _winner(rows: Sequence[Row], pool: str) -> str:
    ratios = [row.ms[pool] / row.ms[STREAMS] for row in rows]
    middle = statistics.median(ratios)
    if abs(middle - 1) < NOISE:
        return "no difference"
    return f"streams by {middle:.2f}" if middle > 1 else f"unified by {1 / middle:.2f}"


def _speed(rows: Sequence[Row], count: int) -> float:
    return statistics.median(1000 * count / row.ms[STREAMS] for row in rows if row.sequences == count)


def _cell(row: Row, column: str, computed: float | None) -> str:
    if column not in row.ms:
        return ""
    ms = row.ms[column]
    text = f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"
    return f"{text} ({ms / computed:.2%})" if computed and row.what in STATE_IO else text


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
