"""Estimates of the duration of a step and of a move, learnt from these themselves. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_WEIGHT = 0.2
"""Weight of the newest move, and of the newest context of answers."""
_KEEP = 0.96
"""Weight of what was observed before a batch: after some dozens a passing load on the machine is forgotten."""
_REFIT = 8
"""Observations after which the figures are computed anew; the first ones count at once."""
_TRUST = 0.01
"""Weight of the figures so far against new observations, which matters where these say nothing about one of them."""
_TINY = 1e-6
"""The same for those that are 0, so that there is a solution."""
_DOUBT = 0.1
"""Weight against a constant and a price of cells before observations differ: a token explains what it can."""
_AGE = 256
"""Batches after which the price of a draft that was not seen again is forgotten: one lucky figure must not stand for ever."""
_USUAL = 512
"""Tokens of a chunk that spreads its constant part well."""

Features = tuple[float, float, float]


class StepCosts:
    """Estimates that a batch takes what its answers and its prompt tokens take, and each of the two a constant, so much a token
    and so much a cell that attention passes.

    `move_seconds` is the time to save or to restore a token's state, `switch_seconds` what a batch takes longer behind one with
    other adapters.
    """

    def __init__(self) -> None:
        self.move_seconds = 0.0
        self.switch_seconds = 0.0
        self._begun = (0, 0, 0.0, 0.0, 0.0)  # batches that nobody has waited for: as `observe` has them
        self._context = 0.0
        self._decode = _Fit((_DOUBT, _DOUBT, _DOUBT))
        self._prompt = _Fit((_DOUBT, _DOUBT / 1000, _DOUBT))
        self._drafts: dict[tuple[int, int], tuple[float, int]] = {}
        self._batches = 0

    def defer(self, n_decode: int, n_prompt: int, seconds: float, cells: float = 0, work: float = 0) -> None:
        """Note a batch that nobody has waited for: it counts with the next one that is observed."""
        d, p, s, c, w = self._begun
        self._begun = n_decode + d, n_prompt + p, seconds + s, cells + c, work + w

    def observe(self, n_decode: int, n_prompt: int, seconds: float, cells: float = 0, work: float = 0) -> None:
        """Learn from a batch of `n_decode` answer tokens, which see `cells` cells, and `n_prompt` prompt tokens with so much
        `work` of attention (`Limits.work`), that took `seconds`, with those that it had to wait for."""
        self.defer(n_decode, n_prompt, seconds, cells, work)
        (n_decode, n_prompt, seconds, cells, work), self._begun = self._begun, (0, 0, 0.0, 0.0, 0.0)
        self._batches += 1
        if n_prompt == 0:
            self._decode.add((1.0, n_decode, cells), seconds)
            self._context += _WEIGHT * (cells / n_decode - self._context)
        else:
            rest = max(seconds - self.decode(n_decode, cells), seconds * 0.1)
            self._prompt.add((1.0, n_prompt, work), rest)

    def observe_drafts(self, answers: int, drafting: int, length: int, seconds: float) -> None:
        """Learn from a batch of `answers`, of which `drafting` had drafts of this length; of nothing if it had to wait for
        others."""
        self._batches += 1
        begun, self._begun = self._begun, (0, 0, 0.0, 0.0, 0.0)
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

    def observe_switch(self, seconds: float) -> None:
        """Learn that a batch behind one with other adapters took so many seconds longer."""
        self.switch_seconds = max(0.0, self.switch_seconds + _WEIGHT * (seconds - self.switch_seconds))

    def decode(self, n_decode: int, cells: float | None = None) -> float:
        """Return the seconds of a batch of `n_decode` answer tokens that see `cells` cells, by default as many as lately."""
        if not n_decode:
            return 0.0
        return self._decode.estimate(n_decode, n_decode * self._context if cells is None else cells)

    def prompt(self, tokens: float, work: float = 0) -> float:
        """Return the seconds of a chunk of `tokens` of a prompt, beside what the answers take."""
        return self._prompt.estimate(tokens, work) if tokens else 0.0

    def per_token(self) -> float:
        """Return the seconds of a prompt token in a large chunk, before a context."""
        return self.prompt(_USUAL) / _USUAL

    def chunk(self, n_decode: int, seconds: float) -> int:
        """Return the number of tokens that fit into `seconds` beside `n_decode` answer tokens."""
        cost = self.per_token()
        return max(0, int((seconds - self.decode(n_decode)) / cost)) if cost else 0

    def pays(self, restored: int, computed: int) -> bool:
        """Tell whether to restore `restored` tokens rather than to compute `computed`."""
        return computed * self.per_token() > restored * self.move_seconds


class DraftCosts:
    """Estimates of the time that the draft model takes to guess and to read."""

    def __init__(self) -> None:
        self._step = _Figures()
        self._read = _Figures()

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
    """Seconds per power of two."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def add(self, number: int, new: float) -> None:
        bucket = number.bit_length()
        old = self._seconds.get(bucket, new)
        self._seconds[bucket] = old + _WEIGHT * (new - old)

    def nearest(self, number: int) -> float:
        bucket = number.bit_length()
        if not self._seconds:
            return 0.0
        return self._seconds[min(self._seconds, key=lambda known: abs(known - bucket))]

    def values(self) -> list[float]:
        return list(self._seconds.values())


class _Fit:
    """A sum of three features with coefficients of at least 0, whose relative errors over the last observations are least.

    Errors are relative so that a step which something else delayed counts no more than another. `doubts`: how much the first
    observation of a feature speaks against its being nothing.
    """

    def __init__(self, doubts: Features) -> None:
        self._products: npt.NDArray[np.float64] = np.zeros((3, 3))
        self._sums: npt.NDArray[np.float64] = np.zeros(3)
        self._doubts = np.array(doubts)
        self._count = 0
        self.coefficients: Features = (0.0, 0.0, 0.0)

    def add(self, features: Features, seconds: float) -> None:
        row = np.array(features) / max(seconds, 1e-9)
        new = (row > 0) & (np.diag(self._products) == 0)
        self._products = _KEEP * self._products + np.outer(row, row) + np.diag(np.where(new, self._doubts * row**2, 0))
        self._sums = _KEEP * self._sums + row
        self._count += 1
        if self._count <= _REFIT or self._count % _REFIT == 0:
            self._fit()

    def estimate(self, tokens: float, cells: float) -> float:
        constant, token, cell = self.coefficients
        return constant + token * tokens + cell * cells

    def _fit(self) -> None:
        """Solve for the coefficients, without negative ones; what observations do not tell stays as it is."""
        used = np.flatnonzero(np.diag(self._products))
        scale = np.sqrt(np.diag(self._products)[used])
        known = np.array(self.coefficients)[used] * scale
        trust = np.where(known > 0, _TRUST, _TINY)
        left = self._products[np.ix_(used, used)] / np.outer(scale, scale) + np.diag(trust)
        right = self._sums[used] / scale + trust * known
        kept = np.arange(len(used))
        found = np.zeros(3)
        while len(kept):
            solved = np.linalg.solve(left[np.ix_(kept, kept)], right[kept])
            if solved.min() >= 0:
                found[used[kept]] = solved / scale[kept]
                break
            kept = np.delete(kept, solved.argmin())
        self.coefficients = (float(found[0]), float(found[1]), float(found[2]))
