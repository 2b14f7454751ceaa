"""The report of a file of results: facts, the table, and what needs saying below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchlib import summary
from benchlib.prompts import WORKLOADS
from benchlib.results import Results, Run
from benchlib.summary import Row, Sample
from benchlib.table import table

NOISE = 0.1  # cores that other processes may use during a turn before it counts as noisy
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"


def describe(sample: Sample) -> str:
    """A sample in a few words, for the progress lines."""
    ttft = "-" if sample.ttft_p50 is None else f"{sample.ttft_p50:,.0f} ms"
    wrong = f", {sample.wrong_lengths} of wrong length" if sample.wrong_lengths else ""
    return f"{sample.tokens_per_s:.1f} tokens/s, TTFT p50 {ttft}, {sample.errors} errors{wrong}, {sample.seconds:.1f} s"


def markdown(results: Results) -> str:
    """All that is printed at the end, to be pasted as it is."""
    rows, samples = results.rows, results.samples
    lines = [line for number, run in enumerate(results.runs) if _used(number, samples) for line in _facts(run)]
    rounds = " to ".join(map(str, sorted({min(row.rounds for row in rows), max(row.rounds for row in rows)}))) if rows else "0"
    lines.append(f"- medians of {rounds} alternating rounds; x: the median of each round's ratio to {results.reference}")
    lines += _legend(rows)
    return "\n".join([*lines, "", table(rows, results.reference), "", *_restarts(samples), *notes(rows, samples)]).rstrip("\n")


def on_page(page: str, results: Results) -> str:
    """The page with the report between its markers. Raises ValueError for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"a page needs the lines {BEGIN.strip()} and {END}, for the report between them")
    return f"{before}{BEGIN}{markdown(results)}\n{END}{after}"


def _used(number: int, samples: Iterable[Sample]) -> bool:
    return any(sample.run == number for sample in samples)


def _facts(run: Run) -> list[str]:
    quick = ["- quick run: texts and answers of a quarter of their length, whose figures say little"] if run.quick else []
    servers = [f"- server {name}: `{how}`" for name, how in run.servers.items()]
    return [*(f"- {name}: {value}" for name, value in run.facts.items()), *servers, *quick]


def _legend(rows: Sequence[Row]) -> list[str]:
    names = {row.workload for row in rows}
    said = {
        "- tokens/s: higher is better; times in ms and memory in MiB: lower is better": True,
        "- cached: the share of the prompts' tokens that the server had in its cache, by its own usage": True,
        "- copied: the share of the answers that stands in the file to edit": "edit" in names,
        "- errors: answers that were not whole, of all; cut off: those of them that began and stopped early": True,
        "- n: times are those of each of a request's answers": any(WORKLOADS[name].n > 1 for name in names),
        "- long: TTFT of the prompts that arrive, ITL of the clients that decode meanwhile": "long" in names,
        "- start: TTFT from the command that starts the server, weights on disk": "start" in names,
        "- flags: those of the C++ server besides its usual ones, the best of `--tune`": any(row.flags for row in rows),
    }
    return [text for text, shown in said.items() if shown]


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


def notes(rows: Iterable[Row], samples: Sequence[Sample]) -> list[str]:
    """What is wrong with the rows and what spoils them, a line each."""
    wrong = [
        f"- {row.workload}, {row.clients} clients, {row.server}: {row.wrong_lengths} of {row.requests} answers "
        "have another number of tokens than asked for"
        for row in rows
        if row.wrong_lengths
    ]
    messages = dict.fromkeys(f"- {sample.server}: {text}" for sample in samples for text in sample.messages)
    spoilt = sum((sample.other_cpu or 0) > NOISE * sample.seconds for sample in samples)
    noise = [f"- {spoilt} of {len(samples)} turns are noisy: other processes used more than {NOISE:g} cores"] if spoilt else []
    return [*wrong, *messages, *_other_prompts(samples), *noise]


def _other_prompts(samples: Sequence[Sample]) -> list[str]:
    """The rows in which the servers count other numbers of prompt tokens, so that they did not do the same work."""
    counts: dict[tuple[str, str, int, int], set[float]] = {}
    for each in samples:
        if each.prompt_tokens is not None:
            counts.setdefault((each.model, each.workload, each.clients, each.round), set()).add(each.prompt_tokens)
    rows = dict.fromkeys((workload, clients) for (_, workload, clients, _), found in counts.items() if len(found) > 1)
    return [f"- {workload}, {clients} clients: the servers count other numbers of prompt tokens" for workload, clients in rows]
