"""The rows of the README's table, and what LocalLab wants to reach in each: ratios to the C++ server, unless said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NAMES = {"tokens_per_s": "tok/s", "ttft_p50": "TTFT p50", "itl_p99": "ITL p99", "peak_mib": "memory"}


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for the ratio of a metric, or for its value in milliseconds: at least that for tokens/s, at most for others."""

    metric: str
    bound: float
    absolute: bool = False

    def __str__(self) -> str:
        sign = "≥" if self.metric == "tokens_per_s" else "≤"
        return f"{NAMES[self.metric]} {sign} {f'{self.bound / 1000:g} s' if self.absolute else f'{self.bound:.2f}'}"

    def reached(self, values: Mapping[str, float | None], ratios: Mapping[str, float | None]) -> bool:
        """Whether a row does it; one without the value does not."""
        value = (values if self.absolute else ratios)[self.metric]
        if value is None:
            return False
        rounded = value if self.absolute else round(value, 2)  # what the table shows decides
        return rounded >= self.bound if self.metric == "tokens_per_s" else rounded <= self.bound


def _speed(bound: float, **most: float) -> tuple[Goal, ...]:
    return (Goal("tokens_per_s", bound), *(Goal(metric, value) for metric, value in most.items()))


ROWS: Mapping[tuple[str, int], tuple[Goal, ...]] = {
    ("short", 1): _speed(1.00, itl_p99=2.0),
    ("short", 8): _speed(1.03, itl_p99=2.0),
    ("short", 32): _speed(1.05, itl_p99=2.0),
    ("busy", 1): _speed(5.0),
    ("busy", 8): _speed(5.0),
    ("prompt", 8): _speed(1.05, ttft_p50=0.35, itl_p99=0.35),
    ("prompt", 32): _speed(1.15, ttft_p50=0.35, itl_p99=0.35),
    ("long", 5): _speed(1.0, itl_p99=0.15),
    ("cold", 1): (Goal("ttft_p50", 1.0),),
    ("shared", 8): _speed(2.2),
    ("shared", 32): _speed(4.0),
    ("shared-warm", 8): _speed(1.15),
    ("edit", 1): _speed(2.0),
    ("edit", 4): _speed(1.3),
    ("json", 4): _speed(1.6),
    ("turns", 1): _speed(2.0),
    ("turns", 8): _speed(2.0),
    ("image", 8): _speed(1.0),
    ("image-shared", 8): _speed(2.0),
    ("start", 1): (Goal("ttft_p50", 2000.0, absolute=True), Goal("peak_mib", 1.3)),
}
OTHER_ROWS = (("short", 8), ("shared", 8), ("turns", 8))
"""The rows of each further --model."""
