"""The report: facts, the table, and what needs saying below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchlib import summary
from benchlib.prompts import WORKLOADS
from benchlib.summary import Row, Sample

NOISE = 0.1  # cores that other processes may use during a turn before it counts as noisy


def describe(sample: Sample) -> str:
    """A sample in a few words, for the progress lines."""
    ttft = "-" if sample.ttft_p50 is None else f"{sample.ttft_p50:,.0f} ms"
    return f"{sample.tokens_per_s:.1f} tokens/s, TTFT p50 {ttft}, {sample.errors} errors, {sample.seconds:.1f} s"


def markdown(samples: Sequence[Sample], reference: str, rounds: int, facts: Mapping[str, str]) -> str:
    """All that is printed at the end, to be pasted as it is."""
    rows = summary.summarise(samples, reference)
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines.append(f"- medians of {rounds} alternating rounds; x: the median of each round's ratio to {reference}; times in ms")
    lines.append("- cached: the share of the prompts' tokens that the server had in its cache, by its own usage")
    lines.append("- errors: answers that were not whole, of all; cut off: those of them that began and stopped early")
    if any(WORKLOADS[row.workload].n > 1 for row in rows):
        lines.append("- n: times are those of each of a request's answers")
    if any(WORKLOADS[row.workload].decoders for row in rows):
        lines.append("- long: TTFT of the prompts that arrive, ITL of the clients that decode meanwhile")
    return "\n".join([*lines, "", summary.table(rows), "", *_restarts(samples), *_notes(rows, samples)]).rstrip("\n")


def _restarts(samples: Sequence[Sample]) -> list[str]:
    cold = {(sample.workload, sample.server, sample.round): sample for sample in samples}
    ratios: dict[tuple[str, str], list[float | None]] = {}
    for sample in samples:
        workload = WORKLOADS[sample.workload]
        if workload.restart:
            before = cold.get((workload.after, sample.server, sample.round))
            ratios.setdefault((sample.workload, sample.server), []).append(summary.ratio(sample, before, "ttft_p50"))
    found = {key: summary.median(values) for key, values in ratios.items()}
    return [
        f"- {workload}, {server}: TTFT p50 after the restart is {share:.2f} of the cold one"
        for (workload, server), share in found.items()
        if share is not None
    ]


def _notes(rows: Iterable[Row], samples: Sequence[Sample]) -> list[str]:
    short = [
        f"- {row.workload}, {row.clients} clients, {row.server}: {row.short_answers} of {row.requests} answers are too short"
        for row in rows
        if row.short_answers
    ]
    messages = dict.fromkeys(f"- {sample.server}: {text}" for sample in samples for text in sample.messages)
    spoilt = sum((sample.other_cpu or 0) > NOISE * sample.seconds for sample in samples)
    noise = [f"- {spoilt} of {len(samples)} turns are noisy: other processes used more than {NOISE:g} cores"] if spoilt else []
    return [*short, *messages, *noise]
