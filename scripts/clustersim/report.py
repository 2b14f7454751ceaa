"""What came of a run: rows, as a Markdown table and as JSON. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from clustersim.cost_of_table import Cost
from clustersim.simulation import Cluster, Outcome

Cells = Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One router in one cluster under one workload; `ideal` is the hit rate of one cache that forgets nothing."""

    workload: str
    router: str
    cluster: Cluster
    ideal: float
    outcome: Outcome

    def cells(self) -> Cells:
        cluster, found = self.cluster, self.outcome
        return {
            "workload": self.workload,
            "replicas": f"{cluster.replicas:,}",
            "fronts": f"{cluster.fronts}",
            "period": f"{cluster.period:g}",
            "router": self.router,
            "requests": f"{found.requests:,}",
            "hit rate": f"{found.hit_rate:.1%}",
            "of one": f"{found.hit_rate / self.ideal:.2f}",
            "balance": f"{found.balance:.2f}",
            "TTFT p50": f"{found.ttft_p50:.2f}",
            "TTFT p99": f"{found.ttft_p99:.1f}",
            "tokens/s": f"{found.tokens_per_second:,.0f}",
            "copies": f"{found.copies or '-'}",
        }


def cells(rows: Sequence[Row | Cost]) -> list[Cells]:
    """Return the cells of rows of one kind, without columns that say the same everywhere although they could differ."""
    found = [row.cells() for row in rows]
    same = [name for name in ("fronts", "period", "copies") if len({each.get(name) for each in found}) < 2]
    return [{name: cell for name, cell in each.items() if name not in same} for each in found]


def table(rows: Sequence[Cells]) -> str:
    """Return rows as a Markdown table, figures to the right."""
    names = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    left = [name for name in names if not any(row[name][0].isdigit() for row in rows)]

    def line(row: Cells) -> str:
        padded = (row[name].ljust(widths[name]) if name in left else row[name].rjust(widths[name]) for name in names)
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (widths[name] + 2) if name in left else "-" * (widths[name] + 1) + ":" for name in names)
    return "\n".join([line({name: name for name in names}), f"|{rule}|", *map(line, rows)])


def as_json(rows: Sequence[Row | Cost]) -> str:
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n"
