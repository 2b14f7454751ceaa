"""A llama.cpp sampler chain from SamplingParams, and a shortcut for plain greedy requests."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import llama_cpp
import numpy as np
import numpy.typing as npt

from locallab.engine.context import Context
from locallab.engine.llama import Model
from locallab.engine.logprobs import MOST_LOGPROBS
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField

_SEEDS = (1 << 32) - 1
"""Seeds are below it; this value itself (LLAMA_DEFAULT_SEED) means a random seed."""

_IMPOSSIBLE = 1e-20
"""Tokens less likely than the best one by this factor are removed first: typical_p takes the logarithm of the rest."""


def check(params: SamplingParams, n_vocab: int) -> None:
    """Raise InvalidField, with the range, for a value out of range."""
    _require("temperature", params.temperature, params.temperature >= 0, "at least 0")
    _require("top_k", params.top_k, params.top_k >= 0, "at least 0 (0: off)")
    _require("top_p", params.top_p, 0 < params.top_p <= 1, "above 0 and at most 1")
    _require("min_p", params.min_p, 0 <= params.min_p <= 1, "between 0 and 1")
    _require("typical_p", params.typical_p, 0 < params.typical_p <= 1, "above 0 and at most 1")
    _require("repeat_penalty", params.repeat_penalty, params.repeat_penalty > 0, "above 0 (1: off)")
    _require("frequency_penalty", params.frequency_penalty, abs(params.frequency_penalty) <= 2, "between -2 and 2")
    _require("presence_penalty", params.presence_penalty, abs(params.presence_penalty) <= 2, "between -2 and 2")
    _require("penalty_window", params.penalty_window, params.penalty_window >= -1, "at least -1 (-1: everything)")
    if params.max_tokens is not None:
        _require("max_tokens", params.max_tokens, params.max_tokens >= 0, "at least 0")
    if params.logprobs is not None:
        _require("logprobs", params.logprobs, 0 <= params.logprobs <= MOST_LOGPROBS, f"between 0 and {MOST_LOGPROBS}")
    elif params.prompt_logprobs:
        raise InvalidField("prompt_logprobs", "needs logprobs: the number of alternatives")
    for token, bias in params.logit_bias:
        _require("logit_bias", token, 0 <= token < n_vocab, f"a token id from 0 to {n_vocab - 1}")
        _require("logit_bias", bias, not math.isnan(bias), "a number")
    for token in params.stop_token_ids:
        _require("stop_token_ids", token, 0 <= token < n_vocab, f"a token id from 0 to {n_vocab - 1}")


def _require(field: str, value: float, holds: bool, expected: str) -> None:
    if not holds or not (isinstance(value, int) or math.isfinite(value) or field == "logit_bias"):
        raise InvalidField(field, f"must be {expected}, got {value}")


class Sampler:
    """Samples the tokens of one request. Owned by the engine's thread; `close` frees the native chain.

    The order is llama.cpp's: bias, penalties, top-k, typical, top-p, min-p, temperature, draw. A request that is greedy and
    changes no logit needs no chain: its token is the largest logit. `banned` tokens are never sampled.
    """

    def __init__(self, params: SamplingParams, model: Model, n_ctx: int) -> None:
        banned = tuple((token, -math.inf) for token in sorted(model.end_tokens)) if params.ignore_eos else ()
        self._bias = params.logit_bias + banned
        self._window = n_ctx if params.penalty_window < 0 else params.penalty_window
        self._penalized = params.penalty_window != 0 and (
            params.repeat_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
        )
        is_plain = params.temperature == 0 and not params.logit_bias and not self._penalized
        self.banned = [token for token, _ in banned]
        self._chain = None if is_plain else self._build(params, model.n_vocab)

    def accept(self, tokens: Sequence[int]) -> None:
        """Show tokens that were not sampled (a prompt, forced tokens) to the penalties: llama_sampler_accept."""
        for token in tokens[-self._window :] if self._penalized else ():
            llama_cpp.llama_sampler_accept(self._chain, token)

    def draw(self, context: Context, logits: npt.NDArray[np.float32], index: int) -> int:
        """Sample from `logits`, the context's own of entry `index` of the last batch, and accept the token.

        llama_sampler_sample, or the largest logit. Mutates `logits` where end tokens are ignored.
        """
        if self._chain is not None:
            return int(llama_cpp.llama_sampler_sample(self._chain, context.handle, index))
        if self.banned:
            logits[self.banned] = -np.inf
        return int(logits.argmax())

    def close(self) -> None:
        if self._chain is not None:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None

    def _build(self, params: SamplingParams, n_vocab: int) -> int:
        """Return a sampler chain, to be freed with llama_sampler_free."""
        parts = []
        if self._bias:
            biases = (llama_cpp.llama_logit_bias * len(self._bias))(*self._bias)
            parts.append(llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(self._bias), biases))
        if self._penalized:
            penalties = params.repeat_penalty, params.frequency_penalty, params.presence_penalty
            parts.append(llama_cpp.llama_sampler_init_penalties(n_vocab, self._window, *penalties))
        if params.temperature == 0:
            parts.append(llama_cpp.llama_sampler_init_greedy())
        else:
            if params.top_k > 0:
                parts.append(llama_cpp.llama_sampler_init_top_k(params.top_k))
            if params.typical_p < 1:
                parts.append(llama_cpp.llama_sampler_init_min_p(_IMPOSSIBLE, 1))
                parts.append(llama_cpp.llama_sampler_init_typical(params.typical_p, 1))
            if params.top_p < 1:
                parts.append(llama_cpp.llama_sampler_init_top_p(params.top_p, 1))
            if params.min_p > 0:
                parts.append(llama_cpp.llama_sampler_init_min_p(params.min_p, 1))
            parts.append(llama_cpp.llama_sampler_init_temp(params.temperature))
            seed = random.randrange(_SEEDS) if params.seed is None else params.seed % _SEEDS
            parts.append(llama_cpp.llama_sampler_init_dist(seed))
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for part in parts:
            llama_cpp.llama_sampler_chain_add(chain, part)
        return chain  # type: ignore[no-any-return]
