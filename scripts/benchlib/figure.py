"""The figure: how many times as fast as the reference a server is in each row, as SVG for light and dark pages. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchlib.results import Results
from benchlib.summary import Row
from benchlib.table import NOT_US

WIDTH, RIGHT, TOP, STEP, BAR = 760, 60, 52, 24, 14
LETTER = 6.6  # the width of one, about
BY_TIME = ("cold", "restart", "start")  # rows whose tokens/s says nothing: the time to the first token counts
STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #1f2328 }
    .title { font-weight: 600; font-size: 14px }
    .small { fill: #59636e }
    .grid { stroke: #d1d9e0 }
    .one { stroke: #59636e }
    .ahead { fill: #1a7f37 }
    .behind { fill: #bc4c00 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc }
      .small { fill: #9198a1 }
      .grid { stroke: #3d444d }
      .one { stroke: #9198a1 }
      .ahead { fill: #3fb950 }
      .behind { fill: #db6d28 }
    }
"""


def svg(results: Results) -> str:
    """The figure, with a bar for each row of each server but the reference. Raises ValueError if there is none."""
    rows = [row for row in results.rows if row.server not in (results.reference, *NOT_US)]
    bars = [(_label(row, rows), speed) for row in rows if not row.wrong and (speed := _speed(row))]
    if not bars:
        raise ValueError("a figure needs a server beside the reference, and rows without errors")
    low = min(-1, math.floor(min(math.log2(speed) for _, speed in bars)))
    high = max(1, math.ceil(max(math.log2(speed) for _, speed in bars)))
    height = TOP + STEP * len(bars) + 12

    left = 24 + LETTER * max(len(label) for label, _ in bars)
    unit = (WIDTH - left - RIGHT) / (high - low)
    one = left - low * unit
    parts = [_grid(2.0**power, one + power * unit, height) for power in range(low, high + 1)]
    for number, (label, speed) in enumerate(bars):
        parts += _bar(label, speed, left, one, one + math.log2(speed) * unit, TOP + STEP * number)
    quick = " (quick run)" if any(run.quick for run in results.runs) else ""
    title = f"Speed as a multiple of {results.reference}'s{quick}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">',
            f"  <title>{escape(title)}</title>",
            f"  <style>{STYLE}  </style>",
            f'  <text class="title" x="8" y="20">{escape(title)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def _speed(row: Row) -> float | None:
    """How many times as fast as the reference a row is."""
    time = row.ratios["ttft_p50"]
    return (1 / time if time else None) if row.workload in BY_TIME else row.ratios["tokens_per_s"]


def _label(row: Row, rows: Sequence[Row]) -> str:
    server = f", {row.server}" if len({each.server for each in rows}) > 1 else ""
    model = f", {row.model}" if row.model != rows[0].model else ""
    return f"{row.workload}, {row.clients} {'client' if row.clients == 1 else 'clients'}{server}{model}"


def _grid(speed: float, x: float, height: int) -> str:
    kind = "one" if speed == 1 else "grid"
    line = f'  <line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{height - 8}"/>'
    return f'{line}\n  <text class="small" x="{x:.1f}" y="{TOP - 14}" text-anchor="middle">{speed:g}</text>'


def _bar(label: str, speed: float, edge: float, one: float, end: float, y: int) -> list[str]:
    kind = "ahead" if speed >= 1 else "behind"
    left, right = min(one, end), max(one, end)
    return [
        f'  <text x="{edge - 12:.1f}" y="{y + 11}" text-anchor="end">{escape(label)}</text>',
        f'  <rect class="{kind}" x="{left:.1f}" y="{y}" width="{max(right - left, 1):.1f}" height="{BAR}" rx="2"/>',
        f'  <text x="{right + 6:.1f}" y="{y + 11}">{speed:.2f}</text>',
    ]
