"""SamplingParams to a llama.cpp sampler chain, and the short way for plain greedy requests."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import llama_cpp
import numpy as np
import numpy.typing as npt

from locallab.engine.llama import Context, Model
from locallab.engine.logprobs import MOST_LOGPROBS
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField

_SEEDS = (1 << 32) - 1
"""Seeds are below it; this one itself (LLAMA_DEFAULT_SEED) would mean a random seed."""

_IMPOSSIBLE = 1e-20
"""A token less likely than the best one by this factor cannot be drawn; typical_p takes the logarithm of what is left."""


def check(params: SamplingParams, n_vocab: int) -> None:
    """Raises InvalidField for a value that is out of range, with the range."""
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
        raise InvalidField("prompt_logprobs", "needs logprobs: how many alternatives to tell")
    for token, bias in params.logit_bias:
        _require("logit_bias", token, 0 <= token < n_vocab, f"a token id from 0 to {n_vocab - 1}")
        _require("logit_bias", bias, not math.isnan(bias), "a number")
    for token in params.stop_token_ids:
        _require("stop_token_ids", token, 0 <= token < n_vocab, f"a token id from 0 to {n_vocab - 1}")


def _require(field: str, value: float, holds: bool, expected: str) -> None:
    if not holds or not (isinstance(value, int) or math.isfinite(value) or field == "logit_bias"):
        raise InvalidField(field, f"must be {expected}, got {value}")


class Sampler:
    """Draws the next token of one request. Owned by the engine's thread; `close` frees the native chain.

    The order is llama.cpp's: bias, penalties, top-k, typical, top-p, min-p, temperature, draw. A request that is greedy and
    changes no logit needs no chain: its token is the largest logit. `banned` are tokens that are never drawn.
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
        """Shows tokens that were not drawn (a prompt, what a grammar forced) to the penalties."""
        for token in tokens[-self._window :] if self._penalized else ():
            llama_cpp.llama_sampler_accept(self._chain, token)

    def draw(self, context: Context, logits: npt.NDArray[np.float32], index: int) -> int:
        """Draws from `logits`, which are the context's own of entry `index` of the last batch, and accepts the token."""
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
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        if self._bias:
            biases = (llama_cpp.llama_logit_bias * len(self._bias))(*self._bias)
            part = llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(self._bias), biases)
            llama_cpp.llama_sampler_chain_add(chain, part)
        for part in self._parts(params, n_vocab):
            llama_cpp.llama_sampler_chain_add(chain, part)
        return chain  # type: ignore[no-any-return]

    def _parts(self, params: SamplingParams, n_vocab: int) -> Iterable[int]:
        if self._penalized:
            yield llama_cpp.llama_sampler_init_penalties(
                n_vocab, self._window, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
            )
        if params.temperature == 0:
            yield llama_cpp.llama_sampler_init_greedy()
            return
        if params.top_k > 0:
            yield llama_cpp.llama_sampler_init_top_k(params.top_k)
        if params.typical_p < 1:
            yield llama_cpp.llama_sampler_init_min_p(_IMPOSSIBLE, 1)
            yield llama_cpp.llama_sampler_init_typical(params.typical_p, 1)
        if params.top_p < 1:
            yield llama_cpp.llama_sampler_init_top_p(params.top_p, 1)
        if params.min_p > 0:
            yield llama_cpp.llama_sampler_init_min_p(params.min_p, 1)
        yield llama_cpp.llama_sampler_init_temp(params.temperature)
        seed = random.randrange(_SEEDS) if params.seed is None else params.seed % _SEEDS
        yield llama_cpp.llama_sampler_init_dist(seed)
