"""The settings of a generation, as llama.cpp's server tells them."""

from __future__ import annotations

from typing import Any

from locallab.engine import ModelInfo
from locallab.engine.adapters import chosen
from locallab.engine.request import SamplingParams

SAME = (
    "temperature",
    "dynatemp_range",
    "dynatemp_exponent",
    "top_k",
    "top_p",
    "min_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "adaptive_target",
    "adaptive_decay",
    "ignore_eos",
    "min_keep",
)
"""Settings that SamplingParams has under the same name."""

INFINITY = float("inf")

RANDOM = 0xFFFFFFFF
"""The seed that stands for a random one."""


def settings_body(params: SamplingParams, info: ModelInfo, *, stream: bool = False) -> dict[str, Any]:
    """Return llama.cpp's `generation_settings`; -1 is no limit. That the end is ignored shows as a bias, too. Raises
    InvalidField for an adapter that the model does not have."""
    limit = -1 if params.max_tokens is None else params.max_tokens
    constraint = params.constraint
    biases = list(params.logit_bias)
    if params.ignore_eos and info.eos in info.control_tokens:
        biases.append((info.control_tokens[info.eos], -INFINITY))
    return {
        **{name: getattr(params, name) for name in SAME},
        "seed": RANDOM if params.seed is None else params.seed,
        "repeat_last_n": params.penalty_window,
        "dry_sequence_breakers": list(params.dry_sequence_breakers),
        "samplers": list(params.samplers),
        "stop": list(params.stop),
        "max_tokens": limit,
        "n_predict": limit,
        "n_probs": params.logprobs or 0,
        "logit_bias": [{"bias": None if bias == -INFINITY else bias, "token": of} for of, bias in biases],
        "grammar": constraint.source if constraint and constraint.kind == "gbnf" else "",
        "lora": [{"id": id, "scale": scale} for id, scale in chosen(info.adapters, params.lora or ()).scales],
        "stream": stream,
    }
