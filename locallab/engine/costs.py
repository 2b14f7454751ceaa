"""How long a step takes on this machine, learnt from the steps themselves. Pure."""

from __future__ import annotations

_WEIGHT = 0.2
"""Weight of the newest observation: a few steps forget a load that is gone."""


class StepCosts:
    """A step of `n_decode` answer tokens and `n_prompt` prompt tokens takes decode(n_decode) + n_prompt * per_prompt_token.

    The decode part is remembered by the power of two that `n_decode` falls under: it is not linear.
    """

    def __init__(self) -> None:
        self._decode: dict[int, float] = {}
        self._per_prompt_token: float | None = None

    def observe(self, n_decode: int, n_prompt: int, seconds: float) -> None:
        """Mutates: learns from one step that took `seconds`."""
        if n_prompt == 0:
            bucket = n_decode.bit_length()
            self._decode[bucket] = _blend(self._decode.get(bucket), seconds)
        else:
            rest = max(seconds - self.decode(n_decode), seconds * 0.1)
            self._per_prompt_token = _blend(self._per_prompt_token, rest / n_prompt)

    def decode(self, n_decode: int) -> float:
        """Seconds of a step of `n_decode` answer tokens; the nearest known size speaks for an unknown one."""
        if n_decode == 0 or not self._decode:
            return 0.0
        bucket = n_decode.bit_length()
        return self._decode[min(self._decode, key=lambda known: abs(known - bucket))]

    def token(self) -> float:
        """Seconds one token takes at least: in a prompt chunk, or in a decode step of one."""
        known = [s for s in (self._per_prompt_token, self.decode(1)) if s]
        return min(known, default=0.0)

    def chunk(self, n_decode: int, seconds: float) -> int:
        """Prompt tokens that fit beside `n_decode` answer tokens into a step of `seconds`."""
        if self._per_prompt_token is None:
            return 0
        return max(0, int((seconds - self.decode(n_decode)) / self._per_prompt_token))


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
