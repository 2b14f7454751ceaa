"""Log probabilities of one sequence's tokens, from its raw logits. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from locallab.engine.request import SamplingParams, TokenLogprob

MOST_LOGPROBS = 20
"""Most alternatives to a token that are reported."""

Logits = npt.NDArray[np.float32]


class Vocabulary(Protocol):
    """The text of a token, and the name of one that has none."""

    def piece(self, token: int) -> bytes: ...
    def markup(self, token: int) -> bytes: ...


class Logprobs:
    """`see` looks at a place in the sequence before anything changes its logits; `describe` reports on a token there."""

    def __init__(self, params: SamplingParams, vocabulary: Vocabulary) -> None:
        self._count = params.logprobs or 0
        self._of_prompt = params.prompt_logprobs
        self._visible = params.visible
        self._vocabulary = vocabulary
        self._scored: list[TokenLogprob] = []
        self._n_scored = 0
        self._total = 0.0
        self._top: tuple[tuple[int, bytes, float], ...] = ()

    def unscored(self, n_prompt: int) -> int:
        """Return how many tokens of a prompt of that length `score` has not seen; the first has no log probability."""
        return n_prompt - 1 - self._n_scored if self._of_prompt else 0

    def score(self, logits: Logits, token: int) -> None:
        """Record the prompt's next token."""
        self.see(logits)
        rank = 1 + int(np.count_nonzero(logits > logits[token]))
        self._scored.append(dataclasses.replace(self.describe(logits, token), rank=rank))
        self._n_scored += 1

    def take_scored(self) -> tuple[TokenLogprob, ...]:
        """Return what `score` has recorded, once."""
        scored, self._scored = self._scored, []
        return tuple(scored)

    def see(self, logits: Logits) -> None:
        """Make this place the one that `describe` reports on."""
        peak = float(logits.max())
        self._total = peak + math.log(float(np.exp(logits - peak).sum(dtype=np.float64)))
        self._top = tuple((token, self._name(token), float(logits[token]) - self._total) for token in top(logits, self._count))

    def describe(self, logits: Logits, token: int) -> TokenLogprob:
        """Report on a token at the place that was seen; the token's own logit must be unchanged."""
        hidden = token not in self._visible and not self._vocabulary.piece(token)
        return TokenLogprob(token, self._name(token), float(logits[token]) - self._total, self._top, hidden)

    def _name(self, token: int) -> bytes:
        return self._vocabulary.piece(token) or self._vocabulary.markup(token)


class DrawnLogprobs(Logprobs):
    """The same for what is left to draw from once grammar and samplers have been applied. A token that was certain has the
    probability 1."""

    def see(self, logits: Logits) -> None:
        self._drawn: Mapping[int, float] = {}

    def take(self, drawn: Mapping[int, float]) -> None:
        """Take the log probabilities that a token was drawn by."""
        self._drawn = drawn

    def describe(self, logits: Logits, token: int) -> TokenLogprob:
        drawn = self._drawn or {token: 0.0}
        likeliest = sorted(drawn, key=lambda each: -drawn[each])[: self._count]
        self._total, self._top = 0.0, tuple((each, self._name(each), drawn[each]) for each in likeliest)
        return dataclasses.replace(super().describe(logits, token), logprob=drawn[token])


def top(logits: Logits, count: int) -> list[int]:
    """Return the `count` likeliest tokens, best first; of equal ones the first, as the greedy choice does."""
    if not count:
        return []
    count = min(count, len(logits))
    least = np.partition(logits, -count)[-count]
    found = np.flatnonzero(logits >= least)
    order = np.argsort(-logits[found], kind="stable")
    return [int(token) for token in found[order[:count]]]
