"""Estimates of the duration of a step and of a move, learnt from these themselves. Pure."""

from __future__ import annotations

_WEIGHT = 0.2
"""Weight of the newest observation: after a few steps a passing load on the machine is forgotten."""
_AGE = 256
"""Observations after which a figure that was not seen again is forgotten: one lucky minimum must not stand for ever."""


class StepCosts:
    """Estimates that a batch of `n_decode` answer and `n_prompt` prompt tokens takes decode(n_decode) + n_prompt * per_token().

    Both figures are kept per power of two of their number, since neither is linear: a token costs more in a small chunk than
    in a large one. Chunks are sized for the cheapest. `move_seconds` is the time to save or to restore a token's state.
    """

    def __init__(self) -> None:
        self.move_seconds = 0.0
        self._begun = (0, 0, 0.0)  # batches that nobody has waited for: tokens of answers and of prompts, seconds
        self._decode = _Figures(age=None)
        self._prompt = _Figures(age=_AGE)
        self._drafts: dict[tuple[int, int], tuple[float, int]] = {}
        self._batches = 0

    def defer(self, n_decode: int, n_prompt: int, seconds: float) -> None:
        """Note a batch that nobody has waited for: it counts with the next one that is observed."""
        begun = self._begun
        self._begun = n_decode + begun[0], n_prompt + begun[1], seconds + begun[2]

    def observe(self, n_decode: int, n_prompt: int, seconds: float) -> None:
        """Learn from a batch that took `seconds`, with those that it had to wait for."""
        self.defer(n_decode, n_prompt, seconds)
        (n_decode, n_prompt, seconds), self._begun = self._begun, (0, 0, 0.0)
        self._batches += 1
        if n_prompt == 0:
            self._decode.add(n_decode, seconds)
        else:
            rest = max(seconds - self.decode(n_decode), seconds * 0.1)
            self._prompt.add(n_prompt, rest / n_prompt)

    def observe_drafts(self, answers: int, drafting: int, length: int, seconds: float) -> None:
        """Learn from a batch of `answers`, of which `drafting` had drafts of this length; of nothing if it had to wait for
        others."""
        self._batches += 1
        begun, self._begun = self._begun, (0, 0, 0.0)
        if begun[1]:
            return
        key = drafting.bit_length(), length.bit_length()
        extra = max(0.0, seconds - self.decode(answers)) / (drafting * length)
        old, seen = self._drafts.get(key, (extra, 0))
        if self._batches - seen > _AGE:
            old = extra
        self._drafts[key] = old + _WEIGHT * (extra - old), self._batches

    def verify(self, drafting: int, length: int) -> float:
        """Return the seconds that so many drafts of this length add to a batch."""
        per_token, seen = self._drafts.get((drafting.bit_length(), length.bit_length()), (0.0, -_AGE - 1))
        if self._batches - seen > _AGE:
            per_token = self.per_token()
        return drafting * length * per_token

    def observe_move(self, tokens: int, seconds: float) -> None:
        """Learn from a sequence of `tokens` that was saved or restored in `seconds`."""
        new = seconds / max(1, tokens)
        self.move_seconds += (_WEIGHT if self.move_seconds else 1.0) * (new - self.move_seconds)

    def decode(self, n_decode: int) -> float:
        """Return the seconds of a batch of `n_decode` answer tokens, those of the nearest known size for an unknown one."""
        return self._decode.nearest(n_decode) if n_decode else 0.0

    def per_token(self) -> float:
        """Return the seconds of a prompt token in the cheapest known size of chunk."""
        return min(self._prompt.values(), default=0.0)

    def chunk(self, n_decode: int, seconds: float) -> int:
        """Return the number of prompt tokens that fit into `seconds` beside `n_decode` answer tokens."""
        cost = self.per_token()
        return max(0, int((seconds - self.decode(n_decode)) / cost)) if cost else 0

    def pays(self, restored: int, computed: int) -> bool:
        """Tell whether to restore `restored` tokens rather than to compute `computed`."""
        return computed * self.per_token() > restored * self.move_seconds


class DraftCosts:
    """Estimates of the time that the draft model takes to guess and to read."""

    def __init__(self) -> None:
        self._step = _Figures(age=None)
        self._read = _Figures(age=None)

    def observe_guess(self, sequences: int, length: int, seconds: float) -> None:
        """Learn from drafts of `length` tokens, one token of all `sequences` after another."""
        self._step.add(sequences, seconds / length)

    def observe_read(self, tokens: int, seconds: float) -> None:
        """Learn from a piece of one sequence."""
        self._read.add(tokens, seconds / tokens)

    def guess(self, sequences: int, length: int) -> float:
        """Return the seconds for drafts of `length` tokens for so many sequences."""
        return length * self._step.nearest(sequences) if sequences else 0.0

    def read(self, tokens: int) -> float:
        """Return the seconds to read so many tokens."""
        return tokens * min(self._read.values(), default=0.0)


class _Figures:
    """Seconds per power of two. Those not seen in the last `age` observations are forgotten."""

    def __init__(self, age: int | None) -> None:
        self._age = age
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._count = 0

    def add(self, number: int, new: float) -> None:
        bucket = number.bit_length()
        old = self._seconds.get(bucket, new)
        self._seconds[bucket] = old + _WEIGHT * (new - old)
        self._count += 1
        self._seen[bucket] = self._count
        for stale in [b for b, seen in self._seen.items() if self._age and self._count - seen > self._age]:
            del self._seconds[stale], self._seen[stale]

    def nearest(self, number: int) -> float:
        bucket = number.bit_length()
        if not self._seconds:
            return 0.0
        return self._seconds[min(self._seconds, key=lambda known: abs(known - bucket))]

    def values(self) -> list[float]:
        return list(self._seconds.values())
