"""Sampling fields and limits of a request."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from locallab.engine import ModelInfo
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField
from locallab.server.fields.biases import BIASES, read_biases
from locallab.server.fields.body import check_ranges, first
from locallab.server.fields.foreign import SAMPLING
from locallab.server.fields.sampler_order import SAMPLER_NAMES, read_samplers
from locallab.server.fields.table import Others, alias

TokenIds = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]
Texts = list[Annotated[str, Meta(min_length=1)]]

SAME = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "frequency_penalty",
    "presence_penalty",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dry_multiplier",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dynatemp_range",
    "dynatemp_exponent",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "adaptive_target",
    "adaptive_decay",
    "min_keep",
    "min_tokens",
    "ignore_eos",
)
"""Fields that SamplingParams has under the same name, with the same meaning."""


class LoraScale(msgspec.Struct):
    """An adapter, by its id in /lora-adapters, and its scale; 0, as that of adapters that are not named, is off."""

    id: Annotated[int, Meta(description="its place in the order of the load")]
    scale: Annotated[float, Meta(description="how strong it is, from -100 to 100")] = 0.0


class Sampling(msgspec.Struct, kw_only=True):
    """The sampling fields and limits that every generating route takes."""

    temperature: Annotated[float | None, Meta(description="sampling temperature; 0 is greedy")] = None
    top_k: Annotated[int | None, Meta(description="sample from the k likeliest tokens; 0 and -1: all")] = None
    top_p: Annotated[
        float | None, Meta(description="sample from the likeliest tokens whose probabilities add up to p; 1: all")
    ] = None
    min_p: Annotated[
        float | None, Meta(description="drop tokens below this fraction of the top token's probability; 0: none")
    ] = None
    typical_p: Annotated[
        float | None, Meta(description="sample from the most typical tokens whose probabilities add up to p; 1: all")
    ] = None
    top_n_sigma: Annotated[
        float | None,
        Meta(description="drop tokens whose logit is this many standard deviations below the highest; 0 and less: none"),
    ] = None
    xtc_probability: Annotated[
        float | None, Meta(description="chance that of all tokens above xtc_threshold only the least likely is kept; 0: off")
    ] = None
    xtc_threshold: Annotated[float | None, Meta(description="probability from which XTC drops tokens; above 0.5: off")] = None
    dynatemp_range: Annotated[
        float | None, Meta(description="the temperature varies by this much with the entropy; 0: it does not")
    ] = None
    dynatemp_exponent: Annotated[float | None, Meta(description="how the entropy is mapped to that temperature")] = None
    mirostat: Annotated[
        int | None, Meta(description="1 or 2: sample at a fixed surprise, in place of all other samplers; 0: off")
    ] = None
    mirostat_tau: Annotated[float | None, Meta(description="mirostat's target surprise, in bits")] = None
    mirostat_eta: Annotated[float | None, Meta(description="mirostat's learning rate")] = None
    adaptive_target: Annotated[
        float | None, Meta(description="prefer tokens near this probability (adaptive-p); below 0: off")
    ] = None
    adaptive_decay: Annotated[float | None, Meta(description="how slowly adaptive-p forgets")] = None
    samplers: Annotated[
        Any,
        Meta(description="the samplers in their order, as names or as llama.cpp's letters", extra_json_schema=SAMPLER_NAMES),
    ] = None
    min_keep: Annotated[int | None, Meta(description="tokens that each sampler leaves at least")] = None
    repetition_penalty: Annotated[float | None, Meta(description="penalty on tokens that have occurred; 1: off")] = None
    repeat_penalty: Annotated[float | None, alias("repetition_penalty")] = None
    frequency_penalty: Annotated[float | None, Meta(description="penalty on a token for each time it has occurred")] = None
    presence_penalty: Annotated[float | None, Meta(description="penalty on a token once it has occurred")] = None
    penalty_window: Annotated[int | None, Meta(description="number of last tokens the penalties look at; -1: all")] = None
    repeat_last_n: Annotated[int | None, alias("penalty_window")] = None
    dry_multiplier: Annotated[
        float | None, Meta(description="penalty on tokens that continue a repeated sequence (DRY); 0: off")
    ] = None
    dry_base: Annotated[
        float | None, Meta(description="factor of that penalty for each further token of the sequence; below 1: the default")
    ] = None
    dry_allowed_length: Annotated[int | None, Meta(description="length from which a repeated sequence is penalized")] = None
    dry_penalty_last_n: Annotated[int | None, Meta(description="number of last tokens that DRY looks at; -1: all")] = None
    dry_sequence_breakers: Annotated[Texts | None, Meta(description="texts that no repeated sequence spans")] = None
    logit_bias: Annotated[
        Any,
        Meta(
            description="what to add to the logits of tokens, by their ids or for each token of a text; false forbids them",
            extra_json_schema=BIASES,
        ),
    ] = None
    allowed_token_ids: Annotated[TokenIds | None, Meta(description="the only token ids that the answer may have")] = None
    bad_words: Annotated[Texts | None, Meta(description="texts that the answer may not have, alone or behind a space")] = None
    seed: Annotated[int | None, Meta(description="seed of the sampling, for repeatable answers; -1: random")] = None
    do_sample: Annotated[bool | None, Meta(description="false: the same as temperature 0")] = None
    ignore_eos: Annotated[bool | None, Meta(description="continue after the model's end token")] = None
    stop: Annotated[
        str | list[str] | None,
        Meta(description="strings that end the answer and are not part of it; names of control tokens match these"),
    ] = None
    stop_token_ids: Annotated[list[Annotated[int, Meta(ge=0)]] | None, Meta(description="token ids that end the answer")] = None
    include_stop_str_in_output: Annotated[bool | None, Meta(description="true: a stop string is part of the answer")] = None
    min_tokens: Annotated[int | None, Meta(description="tokens before which nothing but a limit ends the answer")] = None
    max_tokens: Annotated[int | None, Meta(description="maximum tokens of the answer; -1: up to the context's end")] = None
    t_max_predict_ms: Annotated[
        int | None, Meta(description="end the answer with its first line that ends this late after its first token; 0: never")
    ] = None
    lora: Annotated[
        list[LoraScale] | None, Meta(description="the LoRA adapters that are on: their ids in /lora-adapters, and their scales")
    ] = None

    LIMITS: ClassVar[tuple[str, ...]] = ("max_tokens",)
    """Fields that limit the answer's tokens; the first that is set counts. -1 is no limit."""

    OTHERS: ClassVar[Others] = SAMPLING

    def __post_init__(self) -> None:
        """Raise InvalidField for what types cannot tell."""
        read_biases(self.logit_bias)
        if self.samplers is not None:
            read_samplers(self.samplers)

    def params(self, info: ModelInfo, longest: int | None, **more: Any) -> SamplingParams:
        """Check the fields against ranges and vocabulary, and return them with `more` fields of SamplingParams; None is unset,
        which is then as the model's defaults say.

        `longest` limits the answer when the request does not. Raises InvalidField.
        """
        check_ranges(self)
        limit = first(*(getattr(self, name) for name in self.LIMITS), longest)
        options = {
            **{name: getattr(self, name) for name in SAME},
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "repeat_penalty": first(self.repetition_penalty, self.repeat_penalty),
            "penalty_window": first(self.penalty_window, self.repeat_last_n),
            "dry_base": self.dry_base if self.dry_base is None or self.dry_base >= 1 else None,
            "dry_sequence_breakers": _tuple(self.dry_sequence_breakers),
            "samplers": None if self.samplers is None else read_samplers(self.samplers),
            "logit_bias": read_biases(self.logit_bias),
            "allowed_token_ids": _tuple(self.allowed_token_ids),
            "bad_words": _tuple(self.bad_words),
            # As for other servers of such models, -1 is a random seed; the engine's seeds have 32 bits.
            "seed": None if self.seed is None or self.seed == -1 else self.seed & 0xFFFFFFFF,
            "stop": tuple(filter(None, [self.stop] if isinstance(self.stop, str) else self.stop or ())),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "include_stop": self.include_stop_str_in_output,
            "max_tokens": None if limit == -1 else limit,
            "lora": tuple((each.id, each.scale) for each in self.lora) if self.lora else None,
            "line_after_ms": None if self.t_max_predict_ms is None else max(0, self.t_max_predict_ms),
            **({"temperature": 0.0} if self.do_sample is False else {}),
            **more,
        }
        params = SamplingParams(**{**info.sampling, **{name: value for name, value in options.items() if value is not None}})
        for field, tokens in (
            ("logit_bias", [of for of, _ in params.logit_bias if isinstance(of, int)]),
            ("allowed_token_ids", params.allowed_token_ids),
            ("stop_token_ids", params.stop_token_ids),
        ):
            for token in tokens:
                if not 0 <= token < info.n_vocab:
                    raise InvalidField(field, f"token ids must be from 0 to {info.n_vocab - 1}, got {token}")
        return params


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
