"""Rows as a Markdown table; times in milliseconds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchlib.goals import NAMES, ROWS, Goal
from benchlib.summary import Row

NOT_US = ("llama-cpp-python",)  # neither the reference nor LocalLab: no goals
LEFT = ("model", "workload", "server", "flags", "goal", "reached")


def table(rows: Sequence[Row], reference: str) -> str:
    """The rows as a Markdown table. Columns in which no row has anything are left out."""
    cells = {name: [cell(row, reference) for row in rows] for name, cell in _columns(rows).items()}
    shown = {name: column for name, column in cells.items() if not rows or any(text not in ("", "-") for text in column)}
    widths = {name: max(map(len, (_head(name), *column))) for name, column in shown.items()}
    lines = [[_head(name) for name in shown], *zip(*shown.values(), strict=True)]
    padded = ["| " + " | ".join(map(_pad, shown, line, widths.values())) + " |" for line in lines]
    rule = "|".join("-" * (width + 2) if name in LEFT else "-" * (width + 1) + ":" for name, width in widths.items())
    return "\n".join([padded[0], f"|{rule}|", *padded[1:]])


def goals(row: Row, reference: str) -> tuple[Goal, ...]:
    """The goals of a row; the reference has none."""
    return () if row.server in (reference, *NOT_US) else ROWS.get((row.workload, row.clients), ())


def missed(row: Row, reference: str) -> list[Goal]:
    """The goals of a row that it does not reach; one with a wrong answer reaches none."""
    return [goal for goal in goals(row, reference) if row.wrong or not goal.reached(row.values, row.ratios)]


def _columns(rows: Sequence[Row]) -> dict[str, Callable[[Row, str], str]]:
    """What to show of a row and the reference, by heading; what follows a space tells equal headings apart."""
    main = rows[0].model if rows else ""  # goals are those of the first model
    return {
        "model": lambda row, _: row.model if any(other.model != main for other in rows) else "",
        "workload": lambda row, _: row.workload,
        "clients": lambda row, _: str(row.clients),
        "server": lambda row, _: row.server,
        "prompt": lambda row, _: _number(row.prompt_tokens, 0),
        "cached": lambda row, _: _share(row.cached),
        "copied": lambda row, _: _share(row.copied),
        "tokens/s": lambda row, _: _number(row.values["tokens_per_s"], 1),
        "x 1": lambda row, _: _number(row.ratios["tokens_per_s"], 2),
        "TTFT p50": lambda row, _: _number(row.values["ttft_p50"], 0),
        "x 2": lambda row, _: _number(row.ratios["ttft_p50"], 2),
        "TTFT p95": lambda row, _: _number(row.values["ttft_p95"], 0),
        "x 3": lambda row, _: _number(row.ratios["ttft_p95"], 2),
        "ITL p50": lambda row, _: _number(row.values["itl_p50"], 1),
        "ITL p99": lambda row, _: _number(row.values["itl_p99"], 1),
        "x 4": lambda row, _: _number(row.ratios["itl_p99"], 2),
        "errors": lambda row, _: f"{row.errors}/{row.requests}{' WRONG' if row.wrong else ''}",
        "cut off": lambda row, _: str(row.cut_off),
        "peak MiB": lambda row, _: _number(row.peak_mib, 0),
        "goal": lambda row, reference: ", ".join(map(str, goals(row, reference))) if row.model == main else "",
        "reached": lambda row, reference: _reached(row, reference) if row.model == main else "",
        "flags": lambda row, _: f"`{row.flags}`" if row.flags else "",
    }


def _reached(row: Row, reference: str) -> str:
    if not goals(row, reference):
        return ""
    short = missed(row, reference)
    return "no: " + ", ".join(NAMES[goal.metric] for goal in short) if short else "yes"


def _head(name: str) -> str:
    return "x" if name.startswith("x ") else name


def _pad(name: str, cell: str, width: int) -> str:
    return cell.ljust(width) if name in LEFT else cell.rjust(width)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
