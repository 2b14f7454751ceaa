"""How likely a model found the tokens of one sequence, from its raw logits. Pure."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from locallab.engine.request import SamplingParams, TokenLogprob

MOST_LOGPROBS = 20
"""Alternatives to a token that are told at most."""

Logits = npt.NDArray[np.float32]


class Vocabulary(Protocol):
    """What a token stands for, and how one that stands for nothing is called."""

    def piece(self, token: int) -> bytes: ...
    def markup(self, token: int) -> bytes: ...


class Logprobs:
    """What one sequence has to tell. `see` looks at a place before anything changes its logits, `tell` at a token there."""

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
        """Tokens of a prompt of that length that `score` has not seen; of the first there is nothing to tell."""
        return n_prompt - 1 - self._n_scored if self._of_prompt else 0

    def score(self, logits: Logits, token: int) -> None:
        """Mutates: the prompt's next token, which nobody draws."""
        self.see(logits)
        self._scored.append(self.tell(logits, token))
        self._n_scored += 1

    def take_scored(self) -> tuple[TokenLogprob, ...]:
        """Mutates: what `score` has found, once."""
        scored, self._scored = self._scored, []
        return tuple(scored)

    def see(self, logits: Logits) -> None:
        """Mutates: this place is the one to tell of."""
        peak = float(logits.max())
        self._total = peak + math.log(float(np.exp(logits - peak).sum(dtype=np.float64)))
        self._top = tuple((token, self._name(token), float(logits[token]) - self._total) for token in top(logits, self._count))

    def tell(self, logits: Logits, token: int) -> TokenLogprob:
        """Of a token at the place that was seen; its own logit must be as it was."""
        hidden = token not in self._visible and not self._vocabulary.piece(token)
        return TokenLogprob(token, self._name(token), float(logits[token]) - self._total, self._top, hidden)

    def _name(self, token: int) -> bytes:
        return self._vocabulary.piece(token) or self._vocabulary.markup(token)


def top(logits: Logits, count: int) -> list[int]:
    """The `count` likeliest tokens, the best first; of equal ones the first, as the greedy choice has it."""
    if not count:
        return []
    count = min(count, len(logits))
    least = np.partition(logits, -count)[-count]
    found = np.flatnonzero(logits >= least)
    order = np.argsort(-logits[found], kind="stable")
    return [int(token) for token in found[order[:count]]]
