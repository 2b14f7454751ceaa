"""The texts in a request's parameters as tokens of a model: biases, bad words, control tokens in stop strings."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Protocol

from locallab.engine.request import SamplingParams
from locallab.engine.sampler_chain import DryRules, dries
from locallab.engine.stop_strings import StopStrings

REMEMBERED = 16
"""Rules that are kept for further requests with the same parameters."""

_FIRST, _MOST = 0xD800, 0x800
"""Surrogates, which occur in no text, stand for control tokens."""


def forbids(params: SamplingParams) -> bool:
    """Return whether a request forbids tokens."""
    return bool(params.bad_words or params.allowed_token_ids) or any(bias == -math.inf for _, bias in params.logit_bias)


class Vocabulary(Protocol):
    """The part of a model that rules are made with."""

    @property
    def vocabulary(self) -> int: ...
    @property
    def suppressed_tokens(self) -> frozenset[int]: ...
    @property
    def control_tokens(self) -> Mapping[str, int]: ...
    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class TokenRules:
    """`bias` has what is added to logits, `banned` the tokens that never come, those of the model's file too, and `bad_words`
    the sequences of tokens that do not.
    `stop` has the stop strings, also with a surrogate for each control token they spell; `marks` has the surrogates by token.
    `dry` penalizes repeated sequences."""

    bias: tuple[tuple[int, float], ...] = ()
    banned: frozenset[int] = frozenset()
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop: StopStrings = dataclasses.field(default_factory=lambda: StopStrings(()))
    marks: Mapping[int, str] = dataclasses.field(default_factory=dict)
    dry: DryRules | None = None


class RuleBook:
    """Makes rules for one model, and remembers the last ones: many answers have the same. Any thread may ask."""

    def __init__(self, model: Vocabulary, context: int) -> None:
        self._model = model
        self._plain = TokenRules(banned=model.suppressed_tokens)
        self._control = model.control_tokens
        self._lengths = sorted(set(map(len, self._control)), reverse=True)
        self._words = functools.lru_cache(REMEMBERED)(self._make)
        self._dry = functools.lru_cache(REMEMBERED)(lambda params: DryRules(model.vocabulary, params, context))

    def rules(self, params: SamplingParams) -> TokenRules:
        """Return the rules of a request; takes milliseconds where a text is new. Raises EngineFailure."""
        rules = self._plain
        if params.logit_bias or params.bad_words or params.stop:
            rules = self._words(params.logit_bias, params.bad_words, params.stop)
        if dries(params):
            named = ("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers")
            key = SamplingParams(**{name: getattr(params, name) for name in named})
            rules = dataclasses.replace(rules, dry=self._dry(key))
        return rules

    def _make(
        self, biases: tuple[tuple[int | str, float], ...], bad_words: tuple[str, ...], stop: tuple[str, ...]
    ) -> TokenRules:
        bias: list[tuple[int, float]] = []
        for of, value in biases:
            tokens = [of] if isinstance(of, int) else self._tokens(of)
            bias += [(token, value) for token in tokens]
        marks: dict[int, str] = {}
        return TokenRules(
            bias=tuple((token, value) for token, value in bias if value > -math.inf),
            banned=self._plain.banned | {token for token, value in bias if value == -math.inf},
            bad_words=tuple(tokens for word in bad_words for tokens in self._spellings(word)),
            stop=StopStrings((text, form) for text in stop for form in self._forms(text, marks)),
            marks=marks,
        )

    def _spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the word as tokens at the beginning of a text, and behind a space if it is one token more often: as vLLM."""
        bare = tuple(self._tokens(word.lstrip()))
        spaced = tuple(self._tokens(" " + word.lstrip()))
        return [bare, spaced] if len(spaced) == len(bare) and spaced[:1] != bare[:1] else [bare]

    def _forms(self, text: str, marks: dict[int, str]) -> list[str]:
        """Return the stop string, and how it reads where its control tokens are tokens; adds to `marks`."""
        form, at = "", 0
        while at < len(text):
            name = next((text[at : at + n] for n in self._lengths if text[at : at + n] in self._control), "")
            if name and (self._control[name] in marks or len(marks) < _MOST):
                form += marks.setdefault(self._control[name], chr(_FIRST + len(marks)))
            else:
                name = text[at]
                form += name
            at += len(name)
        return [text] if form == text else [text, form]

    def _tokens(self, text: str) -> list[int]:
        return self._model.tokenize(text, add_special=False, parse_special=False)
