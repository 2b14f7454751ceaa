"""Summaries: answers -> one sample a turn -> medians and ratios over the rounds -> a Markdown table. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchlib.client import Answer
from benchlib.load import Outcome

METRICS = ("tokens_per_s", "ttft_p50", "ttft_p95", "itl_p50", "itl_p99")
HEADINGS = (
    *("workload", "clients", "server", "prompt", "cached", "tokens/s", "x", "TTFT p50", "x", "TTFT p95", "x"),
    *("ITL p50", "ITL p99", "x", "errors", "cut off", "peak MiB"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Whose turn it was, and what it cost a launched server."""

    workload: str
    clients: int
    round: int
    server: str
    server_cpu: float | None = None
    other_cpu: float | None = None
    peak_mib: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One server's turn at one workload; times in milliseconds, None where no whole answer gives one."""

    workload: str
    clients: int
    round: int
    server: str
    requests: int
    errors: int  # answers that are not whole, for whatever reason
    cut_off: int  # those of them that began and then ended without finish_reason or [DONE]
    short_answers: int  # whole answers of fewer tokens than asked for
    prompt_tokens: float | None
    cached: float | None  # share of the prompt tokens that the server found in its cache, as it says itself
    tokens: int
    seconds: float
    tokens_per_s: float
    ttft_p50: float | None
    ttft_p95: float | None
    itl_p50: float | None
    itl_p99: float | None
    itl_max: float | None
    client_cpu: float  # CPU seconds of the load generator
    server_cpu: float | None  # of a launched server
    other_cpu: float | None  # of everything else on this machine
    peak_mib: float | None
    messages: dict[str, int]  # what went wrong, and how often


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: medians over the rounds, and medians of the ratios to the reference server of each round."""

    workload: str
    clients: int
    server: str
    prompt_tokens: float | None
    cached: float | None
    values: dict[str, float | None]
    ratios: dict[str, float | None]
    requests: int
    errors: int
    cut_off: int
    short_answers: int
    peak_mib: float | None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The percentile of `values`, interpolated between neighbours; None when there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(values: Iterable[float | None]) -> float | None:
    """The median of those values that are not None; None when there are none."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def measure(outcome: Outcome, turn: Turn) -> Sample:
    """One turn as a sample. Where prompts arrived among decoders, TTFT is that of the arrivals, ITL that of the decoders."""
    whole = [answer for answer in outcome.answers if answer.error is None]
    waited = [a for a in outcome.arrivals or outcome.lanes if a.error is None and a.arrivals]
    ttft = [(times[0] - answer.started) * 1000 for answer in waited for times in answer.arrivals.values()]
    streams = [times for answer in outcome.lanes if answer.error is None for times in answer.arrivals.values()]
    gaps = [(later - earlier) * 1000 for times in streams for earlier, later in pairwise(times)]
    tokens = sum(answer.tokens for answer in whole)
    return Sample(
        workload=turn.workload,
        clients=turn.clients,
        round=turn.round,
        server=turn.server,
        requests=len(outcome.answers),
        errors=len(outcome.answers) - len(whole),
        cut_off=sum(answer.cut_off for answer in outcome.answers),
        short_answers=sum(answer.tokens < answer.max_tokens for answer in whole),
        prompt_tokens=median(answer.prompt_tokens for answer in waited),
        cached=_cached_share(whole),
        tokens=tokens,
        seconds=outcome.seconds,
        tokens_per_s=tokens / outcome.seconds,
        ttft_p50=percentile(ttft, 50),
        ttft_p95=percentile(ttft, 95),
        itl_p50=percentile(gaps, 50),
        itl_p99=percentile(gaps, 99),
        itl_max=percentile(gaps, 100),
        client_cpu=outcome.client_cpu,
        server_cpu=turn.server_cpu,
        other_cpu=turn.other_cpu,
        peak_mib=turn.peak_mib,
        messages=dict(Counter(answer.error for answer in outcome.answers if answer.error)),
    )


def _cached_share(answers: Iterable[Answer]) -> float | None:
    known = [(answer.cached_tokens, answer.prompt_tokens) for answer in answers if answer.cached_tokens is not None]
    prompts = sum(tokens or 0 for _, tokens in known)
    return sum(cached for cached, _ in known) / prompts if prompts else None


def summarise(samples: Sequence[Sample], reference: str) -> list[Row]:
    """Rows in the order in which workloads, clients and servers were first seen, the reference first in each."""
    places = dict.fromkeys((sample.clients, sample.workload) for sample in samples)
    servers = sorted(dict.fromkeys(sample.server for sample in samples), key=lambda name: name != reference)
    rows = []
    for clients, workload in places:
        turns = [sample for sample in samples if (sample.clients, sample.workload) == (clients, workload)]
        base = {sample.round: sample for sample in turns if sample.server == reference}
        rows += [
            _row([s for s in turns if s.server == server], base) for server in servers if any(s.server == server for s in turns)
        ]
    return rows


def _row(turns: list[Sample], base: dict[int, Sample]) -> Row:
    return Row(
        workload=turns[0].workload,
        clients=turns[0].clients,
        server=turns[0].server,
        prompt_tokens=median(turn.prompt_tokens for turn in turns),
        cached=median(turn.cached for turn in turns),
        values={metric: median(getattr(turn, metric) for turn in turns) for metric in METRICS},
        ratios={metric: median(ratio(turn, base.get(turn.round), metric) for turn in turns) for metric in METRICS},
        requests=sum(turn.requests for turn in turns),
        errors=sum(turn.errors for turn in turns),
        cut_off=sum(turn.cut_off for turn in turns),
        short_answers=sum(turn.short_answers for turn in turns),
        peak_mib=max((turn.peak_mib for turn in turns if turn.peak_mib is not None), default=None),
    )


def ratio(turn: Sample, base: Sample | None, metric: str) -> float | None:
    """`metric` of `turn`, as a multiple of that of `base`; None where either is missing, or `base` has 0."""
    value, against = getattr(turn, metric), getattr(base, metric, None)
    return value / against if value is not None and against else None


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; times in milliseconds."""
    lines = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    padded = [
        "| " + " | ".join(_pad(cell, width, i) for i, (cell, width) in enumerate(zip(line, widths, strict=True))) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) if i in (0, 2) else "-" * (width + 1) + ":" for i, width in enumerate(widths)) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column in (0, 2) else cell.rjust(width)


def _cells(row: Row) -> tuple[str, ...]:
    value, ratios = row.values, row.ratios
    return (
        row.workload,
        str(row.clients),
        row.server,
        _number(row.prompt_tokens, 0),
        "-" if row.cached is None else f"{row.cached:.0%}",
        _number(value["tokens_per_s"], 1),
        _number(ratios["tokens_per_s"], 2),
        _number(value["ttft_p50"], 0),
        _number(ratios["ttft_p50"], 2),
        _number(value["ttft_p95"], 0),
        _number(ratios["ttft_p95"], 2),
        _number(value["itl_p50"], 1),
        _number(value["itl_p99"], 1),
        _number(ratios["itl_p99"], 2),
        f"{row.errors}/{row.requests}",
        str(row.cut_off),
        _number(row.peak_mib, 0),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
