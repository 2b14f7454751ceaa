"""Summaries: answers -> one sample a turn -> medians and ratios over the rounds. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchlib import source
from locallab.load.client import Answer
from locallab.load.figures import Figures, figures
from locallab.load.generator import Outcome

METRICS = ("tokens_per_s", "ttft_p50", "ttft_p95", "itl_p50", "itl_p99", "peak_mib")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Whose turn it was, and what it cost a launched server."""

    workload: str
    clients: int
    round: int
    server: str
    model: str = ""
    run: int = 0  # its place among the runs of the file of results
    flags: str = ""  # of the C++ server, besides the usual ones
    command: str = ""  # of a launched server, with names instead of paths
    server_cpu: float | None = None  # seconds
    other_cpu: float | None = None  # of everything else on this machine
    peak_mib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sample(Turn, Figures):
    """One server's turn at one workload."""

    prompt_tokens: float | None
    cached: float | None  # share of the prompt tokens that the server found in its cache, as it says itself
    copied: float | None  # share of the answers that was copied from the file to edit
    client_cpu: float  # CPU seconds of the load generator


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: medians over the rounds, and medians of the ratios to the reference server of each round."""

    model: str
    workload: str
    clients: int
    server: str
    flags: str
    rounds: int
    prompt_tokens: float | None
    cached: float | None
    copied: float | None
    values: dict[str, float | None]
    ratios: dict[str, float | None]
    requests: int
    errors: int
    cut_off: int
    wrong_lengths: int
    peak_mib: float | None

    @property
    def wrong(self) -> bool:
        """Whether an answer was not complete, or not of the length that was asked for: the row says nothing then."""
        return bool(self.errors or self.wrong_lengths)


def median(values: Iterable[float | None]) -> float | None:
    """The median of those values that are not None; None when there are none."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def measure(outcome: Outcome, turn: Turn, files: Sequence[str] = ()) -> Sample:
    """One turn as a sample. `files`: what each answer that was kept may have copied, in the order of the answers."""
    waited = [answer for answer in outcome.arrivals or outcome.lanes if answer.error is None]
    edited = [(answer.text, file) for answer, file in zip(outcome.lanes, files, strict=False) if answer.kept]
    return Sample(
        **vars(turn),
        **vars(figures(outcome)),
        prompt_tokens=median(answer.prompt_tokens for answer in waited),
        cached=_cached_share([answer for answer in outcome.answers if answer.error is None]),
        copied=statistics.fmean(source.copied(*each) for each in edited) if edited else None,
        client_cpu=outcome.client_cpu,
    )


def _cached_share(answers: Iterable[Answer]) -> float | None:
    known = [(answer.cached_tokens, answer.prompt_tokens) for answer in answers if answer.cached_tokens is not None]
    prompts = sum(tokens or 0 for _, tokens in known)
    return sum(cached for cached, _ in known) / prompts if prompts else None


def summarise(samples: Sequence[Sample], reference: str) -> list[Row]:
    """Rows in the order in which models, workloads, clients and servers were first seen, the reference first in each."""
    places = dict.fromkeys((sample.model, sample.clients, sample.workload) for sample in samples)
    servers = sorted(dict.fromkeys(sample.server for sample in samples), key=lambda name: name != reference)
    rows = []
    for place in places:
        turns = [sample for sample in samples if (sample.model, sample.clients, sample.workload) == place]
        base = {sample.round: sample for sample in turns if sample.server == reference}
        rows += [
            _row([s for s in turns if s.server == server], base) for server in servers if any(s.server == server for s in turns)
        ]
    return rows


def _row(turns: list[Sample], base: dict[int, Sample]) -> Row:
    return Row(
        model=turns[0].model,
        workload=turns[0].workload,
        clients=turns[0].clients,
        server=turns[0].server,
        flags=turns[0].flags,
        rounds=len(turns),
        prompt_tokens=median(turn.prompt_tokens for turn in turns),
        cached=median(turn.cached for turn in turns),
        copied=median(turn.copied for turn in turns),
        values={metric: median(getattr(turn, metric) for turn in turns) for metric in METRICS},
        ratios={metric: median(ratio(turn, base.get(turn.round), metric) for turn in turns) for metric in METRICS},
        requests=sum(turn.requests for turn in turns),
        errors=sum(turn.errors for turn in turns),
        cut_off=sum(turn.cut_off for turn in turns),
        wrong_lengths=sum(turn.wrong_lengths for turn in turns),
        peak_mib=max((turn.peak_mib for turn in turns if turn.peak_mib is not None), default=None),
    )


def ratio(turn: Sample, base: Sample | None, metric: str) -> float | None:
    """`metric` of `turn`, as a multiple of that of `base`; None where either is missing, or `base` has 0."""
    value, against = getattr(turn, metric), getattr(base, metric, None)
    return value / against if value is not None and against else None
