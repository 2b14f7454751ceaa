"""Estimates of the duration of a step, learnt from the steps themselves. Pure."""

from __future__ import annotations

_WEIGHT = 0.2
"""Weight of the newest observation: after a few steps a passing load on the machine is forgotten."""


class StepCosts:
    """Estimates that a batch of `n_decode` answer and `n_prompt` prompt tokens takes decode(n_decode) + n_prompt * per_token().

    Both figures are kept per power of two of their number, since neither is linear: a token costs more in a small chunk than
    in a large one. Chunks are sized for the cheapest.
    """

    def __init__(self) -> None:
        self._decode: dict[int, float] = {}
        self._prompt: dict[int, float] = {}

    def observe(self, n_decode: int, n_prompt: int, seconds: float) -> None:
        """Learn from a batch that took `seconds`."""
        if n_prompt == 0:
            _blend(self._decode, n_decode, seconds)
        else:
            rest = max(seconds - self.decode(n_decode), seconds * 0.1)
            _blend(self._prompt, n_prompt, rest / n_prompt)

    def decode(self, n_decode: int) -> float:
        """Return the seconds of a batch of `n_decode` answer tokens, those of the nearest known size for an unknown one."""
        if n_decode == 0 or not self._decode:
            return 0.0
        bucket = n_decode.bit_length()
        return self._decode[min(self._decode, key=lambda known: abs(known - bucket))]

    def per_token(self) -> float:
        """Return the seconds of a prompt token in the cheapest known size of chunk."""
        return min(self._prompt.values(), default=0.0)

    def chunk(self, n_decode: int, seconds: float) -> int:
        """Return the number of prompt tokens that fit into `seconds` beside `n_decode` answer tokens."""
        cost = self.per_token()
        return max(0, int((seconds - self.decode(n_decode)) / cost)) if cost else 0


def _blend(figures: dict[int, float], number: int, new: float) -> None:
    bucket = number.bit_length()
    old = figures.get(bucket, new)
    figures[bucket] = old + _WEIGHT * (new - old)
