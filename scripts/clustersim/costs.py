"""What the steps of one replica take: recorded once from the real engine by `clustersim.record`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

RECORDED = Path(__file__).with_name("smollm2.json")

Terms = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a step: of its answers, and of its prompt tokens, a constant, so much a token and so much a cell that
    attention passes. The same sum as that of `locallab.engine.costs.StepCosts`."""

    decode: Terms
    prompt: Terms

    @classmethod
    def read(cls, path: Path = RECORDED) -> Costs:
        """Read a file of `clustersim.record`. Raises OSError; ValueError if it is no such file."""
        try:
            found = json.loads(path.read_text())
            return cls(_terms(found["decode"]), _terms(found["prompt"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: needs decode and prompt, three numbers each, as clustersim.record writes them"
            ) from error

    def decoding(self, answers: int, cells: float) -> float:
        """Return the seconds of one token for each of `answers`, which see `cells` tokens together."""
        return _sum(self.decode, answers, cells)

    def computing(self, tokens: int, start: int) -> float:
        """Return the seconds of a chunk of a prompt behind `start` tokens."""
        return _sum(self.prompt, tokens, tokens * (start + tokens / 2))

    def fitting(self, seconds: float) -> int:
        """Return how many tokens of a prompt, before a context, fit into `seconds`."""
        return int((seconds - self.prompt[0]) / self.prompt[1])


def _sum(terms: Terms, tokens: int, cells: float) -> float:
    return terms[0] + terms[1] * tokens + terms[2] * cells if tokens else 0.0


def _terms(values: list[float]) -> Terms:
    constant, token, cell = map(float, values)
    if min(constant, cell) < 0 or token <= 0:
        raise ValueError("a cost below 0")
    return constant, token, cell
