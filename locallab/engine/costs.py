"""How long a step takes on this machine, learnt from the steps themselves. Pure."""

from __future__ import annotations

_WEIGHT = 0.2
"""Weight of the newest observation: a few steps forget a load that is gone."""


class StepCosts:
    """A batch of `n_decode` answer tokens and `n_prompt` prompt tokens takes decode(n_decode) + n_prompt * per_token().

    Both are remembered by the power of two that their number falls under, for neither is linear: a token of a small chunk
    costs more than one of a large chunk. Chunks are cut for the cheapest.
    """

    def __init__(self) -> None:
        self._decode: dict[int, float] = {}
        self._prompt: dict[int, float] = {}

    def observe(self, n_decode: int, n_prompt: int, seconds: float) -> None:
        """Mutates: learns from one batch that took `seconds`."""
        if n_prompt == 0:
            _blend(self._decode, n_decode, seconds)
        else:
            rest = max(seconds - self.decode(n_decode), seconds * 0.1)
            _blend(self._prompt, n_prompt, rest / n_prompt)

    def decode(self, n_decode: int) -> float:
        """Seconds of a batch of `n_decode` answer tokens; the nearest known size speaks for an unknown one."""
        if n_decode == 0 or not self._decode:
            return 0.0
        bucket = n_decode.bit_length()
        return self._decode[min(self._decode, key=lambda known: abs(known - bucket))]

    def per_token(self) -> float:
        """Seconds a prompt token takes in the cheapest chunk known."""
        return min(self._prompt.values(), default=0.0)

    def chunk(self, n_decode: int, seconds: float) -> int:
        """Prompt tokens that fit beside `n_decode` answer tokens into `seconds`."""
        cost = self.per_token()
        return max(0, int((seconds - self.decode(n_decode)) / cost)) if cost else 0


def _blend(figures: dict[int, float], number: int, new: float) -> None:
    bucket = number.bit_length()
    old = figures.get(bucket, new)
    figures[bucket] = old + _WEIGHT * (new - old)
