"""The ranges of sampling parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from locallab.engine.logprobs import MOST_LOGPROBS
from locallab.engine.request import SamplingParams
from locallab.engine.sampler_chain import NAMES
from locallab.errors import InvalidField

MOST_TEXTS = 1024
"""Most stop strings, bad words, sequence breakers or texts with a bias."""

MOST_CHARACTERS = 16_384
"""Most characters of all of them: they are tokenized, or looked for in every piece of text."""

MOST_BREAKERS = 64
"""Most sequence breakers: each is looked for in every token of the vocabulary."""

MOST_SAMPLERS = 32

RANGES: tuple[tuple[str, float, float, str], ...] = (
    ("temperature", 0, math.inf, "at least 0"),
    ("top_k", 0, math.inf, "at least 0 (0: off)"),
    ("min_p", 0, 1, "between 0 and 1"),
    ("top_n_sigma", -math.inf, math.inf, "a number (0: off)"),
    ("frequency_penalty", -2, 2, "between -2 and 2"),
    ("presence_penalty", -2, 2, "between -2 and 2"),
    ("penalty_window", -1, math.inf, "at least -1 (-1: everything)"),
    ("xtc_probability", 0, 1, "between 0 and 1 (0: off)"),
    ("xtc_threshold", 0, 1, "between 0 and 1 (above 0.5: off)"),
    ("dry_multiplier", 0, 100, "between 0 and 100 (0: off)"),
    ("dry_base", 1, 100, "between 1 and 100"),
    ("dry_allowed_length", 0, math.inf, "at least 0"),
    ("dry_penalty_last_n", -1, math.inf, "at least -1 (-1: everything)"),
    ("dynatemp_range", 0, 100, "between 0 and 100 (0: off)"),
    ("dynatemp_exponent", 0, 10, "between 0 and 10"),
    ("mirostat", 0, 2, "0 (off), 1 or 2"),
    ("mirostat_tau", 0, 100, "between 0 and 100"),
    ("mirostat_eta", 0, 1, "between 0 and 1"),
    ("adaptive_target", -math.inf, 1, "at most 1 (below 0: off)"),
    ("adaptive_decay", 0, 0.99, "between 0 and 0.99"),
    ("min_keep", 0, math.inf, "at least 0"),
    ("min_tokens", 0, math.inf, "at least 0"),
    ("line_after_ms", 0, 2**53, "between 0 and 2**53"),
)
"""Fields, the lowest and the highest value of each, and how an error puts it."""

_WHOLE = {field.name for field in dataclasses.fields(SamplingParams) if type(field.default) is int}


def check(params: SamplingParams, n_vocab: int) -> None:
    """Raise InvalidField, with the range, for a value out of range."""
    for field, low, high, expected in RANGES:
        value = getattr(params, field)
        if field in _WHOLE and not isinstance(value, int):
            raise InvalidField(field, f"must be a whole number, got {value!r}")
        _require(field, value, low <= value <= high, expected)
    _require("top_p", params.top_p, 0 < params.top_p <= 1, "above 0 and at most 1")
    _require("typical_p", params.typical_p, 0 < params.typical_p <= 1, "above 0 and at most 1")
    _require("repeat_penalty", params.repeat_penalty, params.repeat_penalty > 0, "above 0 (1: off)")
    if params.max_tokens is not None:
        _require("max_tokens", params.max_tokens, params.max_tokens >= 0, "at least 0")
    if params.logprobs is not None:
        _require("logprobs", params.logprobs, 0 <= params.logprobs <= MOST_LOGPROBS, f"between 0 and {MOST_LOGPROBS}")
    elif params.prompt_logprobs:
        raise InvalidField("prompt_logprobs", "needs logprobs: the number of alternatives")
    for _, bias in params.logit_bias:
        if math.isnan(bias) or bias == math.inf:
            raise InvalidField("logit_bias", f"must be a number, got {bias}")
    _check_names(params)
    _check_texts("logit_bias", [of for of, _ in params.logit_bias if isinstance(of, str)])
    _check_texts("bad_words", params.bad_words)
    _check_texts("stop", params.stop)
    _check_texts("dry_sequence_breakers", params.dry_sequence_breakers, MOST_BREAKERS)
    _check_tokens("logit_bias", [of for of, _ in params.logit_bias if isinstance(of, int)], n_vocab)
    _check_tokens("allowed_token_ids", params.allowed_token_ids, n_vocab)
    _check_tokens("stop_token_ids", params.stop_token_ids, n_vocab)


def _check_names(params: SamplingParams) -> None:
    for name in params.samplers:
        if name not in NAMES:
            raise InvalidField("samplers", f"unknown sampler {name!r}; known: {', '.join(NAMES)}")
    if len(params.samplers) > MOST_SAMPLERS:
        raise InvalidField("samplers", f"at most {MOST_SAMPLERS} are possible, got {len(params.samplers)}")


def _check_texts(field: str, texts: Iterable[str], most: int = MOST_TEXTS) -> None:
    texts = list(texts)
    if len(texts) > most:
        raise InvalidField(field, f"at most {most} texts are possible, got {len(texts)}")
    if "" in texts and field != "stop":
        raise InvalidField(field, "a text is empty")
    if (length := sum(map(len, texts))) > MOST_CHARACTERS:
        raise InvalidField(field, f"at most {MOST_CHARACTERS} characters are possible, got {length}")


def _check_tokens(field: str, tokens: Iterable[int], n_vocab: int) -> None:
    for token in tokens:
        if not 0 <= token < n_vocab:
            raise InvalidField(field, f"must be a token id from 0 to {n_vocab - 1}, got {token}")


def _require(field: str, value: float, holds: bool, expected: str) -> None:
    if not holds or not (isinstance(value, int) or math.isfinite(value)):
        raise InvalidField(field, f"must be {expected}, got {value}")
