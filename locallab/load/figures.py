"""Figures of a load: answers to rates and percentiles. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from locallab.load.generator import Outcome


@dataclass(frozen=True)
class Figures:
    """What a load was answered with; times in milliseconds, None where no complete answer gives one."""

    requests: int
    errors: int  # answers that are not complete, for whatever reason
    cut_off: int  # those of them that began and then ended without finish_reason or [DONE]
    wrong_lengths: int  # complete answers with another number of tokens than asked for
    tokens: int  # of the complete answers
    seconds: float
    tokens_per_s: float
    ttft_p50: float | None
    ttft_p95: float | None
    itl_p50: float | None
    itl_p99: float | None
    itl_max: float | None
    messages: dict[str, int]  # what went wrong, and how often


def figures(outcome: Outcome) -> Figures:
    """Return the figures. Where prompts arrived among decoders, TTFT is that of the arrivals, ITL that of the decoders."""
    whole = [answer for answer in outcome.answers if answer.error is None]
    waited = [answer for answer in outcome.arrivals or outcome.lanes if answer.error is None]
    first = [(times[0] - answer.started) * 1000 for answer in waited for times in answer.arrivals.values()]
    streams = [times for answer in outcome.lanes if answer.error is None for times in answer.arrivals.values()]
    gaps = [(later - earlier) * 1000 for times in streams for earlier, later in pairwise(times)]
    tokens = sum(answer.tokens for answer in whole)
    return Figures(
        requests=len(outcome.answers),
        errors=len(outcome.answers) - len(whole),
        cut_off=sum(answer.cut_off for answer in outcome.answers),
        wrong_lengths=sum(answer.wrong_length for answer in whole),
        tokens=tokens,
        seconds=outcome.seconds,
        tokens_per_s=tokens / outcome.seconds,
        ttft_p50=percentile(first, 50),
        ttft_p95=percentile(first, 95),
        itl_p50=percentile(gaps, 50),
        itl_p99=percentile(gaps, 99),
        itl_max=percentile(gaps, 100),
        messages=dict(Counter(answer.error for answer in outcome.answers if answer.error)),
    )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the percentile of `values`, interpolated between neighbours; None when there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
