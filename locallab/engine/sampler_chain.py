"""llama.cpp's sampler chains: which samplers there are, in which order, and a chain of them from SamplingParams."""

from __future__ import annotations

import ctypes
import random
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import llama_cpp

from locallab.engine.request import SAMPLERS, SamplingParams

NAMES = (*SAMPLERS, "adaptive_p")
"""The samplers whose order a request may set."""

_SEEDS = (1 << 32) - 1
"""Seeds are below it; this value itself (LLAMA_DEFAULT_SEED) means a random seed."""

_IMPOSSIBLE = 1e-20
"""Tokens less likely than the best one by this factor are removed first where a sampler takes the logarithm of the rest."""

_COLD = 1e-6
"""Divided by less than this, logits would overflow; such a temperature is greedy."""

_CHANGES_LOGITS = ("penalties", "dry")
"""Samplers that can change which token is the likeliest."""

_MIROSTAT_TOKENS = 100
"""Tokens from which the first mirostat estimates how fast probabilities fall, as in llama.cpp's server."""

Part = Any
"""A llama_sampler pointer."""


class DryRules:
    """A DRY sampler of which each answer gets a copy. To make one takes a look at every token of the vocabulary: 7 ms for
    49,152 tokens and four breakers."""

    def __init__(self, vocab: int, params: SamplingParams, context: int) -> None:
        breakers = [text.encode("utf-8", "replace") for text in params.dry_sequence_breakers]
        window = context if params.dry_penalty_last_n < 0 else min(context, params.dry_penalty_last_n)
        self._handle = llama_cpp.llama_sampler_init_dry(
            vocab,
            params.dry_multiplier,
            params.dry_base,
            min(context, params.dry_allowed_length),
            window,
            (ctypes.c_char_p * len(breakers))(*breakers),
            len(breakers),
        )
        weakref.finalize(self, llama_cpp.llama_sampler_free, self._handle)

    def copy(self) -> Part:
        """Return a sampler for one answer; whoever adds it to a chain gives it away (llama_sampler_clone)."""
        return llama_cpp.llama_sampler_clone(self._handle)


def penalizes(params: SamplingParams) -> bool:
    """Return whether tokens that have occurred are penalized one by one."""
    active = params.repeat_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
    return active and params.penalty_window != 0 and _listed(params, "penalties")


def dries(params: SamplingParams) -> bool:
    """Return whether repeated sequences are penalized."""
    return params.dry_multiplier > 0 and params.dry_penalty_last_n != 0 and _listed(params, "dry")


def is_greedy(params: SamplingParams) -> bool:
    """Return whether the likeliest token is taken, of those that XTC leaves."""
    return params.temperature < _COLD and params.dynatemp_range == 0 and (_mirostat(params) or "temperature" in params.samplers)


def excludes_top(params: SamplingParams) -> bool:
    """Return whether XTC may remove the likeliest token."""
    return params.xtc_probability > 0 and params.xtc_threshold <= 0.5 and _listed(params, "xtc")


def build(params: SamplingParams, n_vocab: int, bias: tuple[tuple[int, float], ...], window: int, dry: DryRules | None) -> Part:
    """Return a chain, to be freed with llama_sampler_free. `window` tokens are penalized, `dry` is for `dries` alone."""
    seed = random.randrange(_SEEDS) if params.seed is None else params.seed % _SEEDS
    parts = []
    if bias:
        biases = (llama_cpp.llama_logit_bias * len(bias))(*bias)
        parts.append(llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(bias), biases))
    parts += _samplers(params, n_vocab, window, seed, dry)
    parts.append(_last(params, n_vocab, seed))
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for part in parts:
        llama_cpp.llama_sampler_chain_add(chain, part)
    return chain


def _samplers(params: SamplingParams, n_vocab: int, window: int, seed: int, dry: DryRules | None) -> list[Part]:
    """Make the samplers that are on, in the request's order. Mirostat replaces all, as in llama.cpp."""
    keep = min(max(1, params.min_keep), n_vocab)
    makers: Mapping[str, tuple[bool, Callable[[], list[Part]]]] = {
        "penalties": (penalizes(params), lambda: [_penalties(params, n_vocab, window)]),
        "dry": (dry is not None, lambda: [dry.copy()] if dry else []),
        "top_n_sigma": (params.top_n_sigma > 0, lambda: [llama_cpp.llama_sampler_init_top_n_sigma(params.top_n_sigma)]),
        "top_k": (params.top_k > 0, lambda: [llama_cpp.llama_sampler_init_top_k(min(params.top_k, n_vocab))]),
        "typ_p": (
            params.typical_p < 1,
            lambda: [_possible(), llama_cpp.llama_sampler_init_typical(params.typical_p, keep)],
        ),
        "top_p": (params.top_p < 1, lambda: [llama_cpp.llama_sampler_init_top_p(params.top_p, keep)]),
        "min_p": (params.min_p > 0, lambda: [llama_cpp.llama_sampler_init_min_p(params.min_p, keep)]),
        "xtc": (
            excludes_top(params),
            lambda: [llama_cpp.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, keep, seed)],
        ),
        "temperature": (
            True,
            lambda: [llama_cpp.llama_sampler_init_temp_ext(*_temperature(params), params.dynatemp_exponent)],
        ),
        "adaptive_p": (False, list),  # it draws, so it comes last
    }
    if _mirostat(params):
        return [] if is_greedy(params) else [llama_cpp.llama_sampler_init_temp(params.temperature), _possible()]
    order = params.samplers
    if is_greedy(params) and not excludes_top(params):
        order = tuple(name for name in order if name in _CHANGES_LOGITS)
    return [part for name in order if makers[name][0] for part in makers[name][1]()]


def _last(params: SamplingParams, n_vocab: int, seed: int) -> Part:
    """Make the sampler that draws."""
    if is_greedy(params):
        return llama_cpp.llama_sampler_init_greedy()
    if params.mirostat == 1:
        surprise, rate = params.mirostat_tau, params.mirostat_eta
        return llama_cpp.llama_sampler_init_mirostat(n_vocab, seed, surprise, rate, _MIROSTAT_TOKENS)
    if params.mirostat == 2:
        return llama_cpp.llama_sampler_init_mirostat_v2(seed, params.mirostat_tau, params.mirostat_eta)
    if params.adaptive_target >= 0 or "adaptive_p" in params.samplers:
        return llama_cpp.llama_sampler_init_adaptive_p(params.adaptive_target, params.adaptive_decay, seed)
    return llama_cpp.llama_sampler_init_dist(seed)


def _penalties(params: SamplingParams, n_vocab: int, window: int) -> Part:
    penalties = max(params.repeat_penalty, _COLD), params.frequency_penalty, params.presence_penalty
    return llama_cpp.llama_sampler_init_penalties(n_vocab, window, *penalties)


def _possible() -> Part:
    return llama_cpp.llama_sampler_init_min_p(_IMPOSSIBLE, 1)


def _temperature(params: SamplingParams) -> tuple[float, float]:
    """Return the temperature and its range, moved a little so that it does not become zero where it varies."""
    low, high = params.temperature - params.dynatemp_range, params.temperature + params.dynatemp_range
    if params.dynatemp_range == 0 or low >= _COLD:
        return params.temperature, params.dynatemp_range
    return (high + _COLD) / 2, (high - _COLD) / 2


def _mirostat(params: SamplingParams) -> bool:
    return params.mirostat != 0


def _listed(params: SamplingParams, name: str) -> bool:
    return not _mirostat(params) and name in params.samplers
