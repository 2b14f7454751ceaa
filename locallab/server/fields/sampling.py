"""Sampling fields and limits of a request."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField
from locallab.server.fields.body import check_ranges, first

BIASES = {"propertyNames": {"pattern": "^[0-9]{1,6}$"}}


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
    repetition_penalty: Annotated[float | None, Meta(description="penalty on tokens that have occurred; 1: off")] = None
    repeat_penalty: Annotated[float | None, Meta(description="another name of repetition_penalty")] = None
    frequency_penalty: Annotated[float | None, Meta(description="penalty on a token for each time it has occurred")] = None
    presence_penalty: Annotated[float | None, Meta(description="penalty on a token once it has occurred")] = None
    penalty_window: Annotated[int | None, Meta(description="number of last tokens the penalties look at; -1: all")] = None
    repeat_last_n: Annotated[int | None, Meta(description="another name of penalty_window")] = None
    logit_bias: Annotated[
        dict[int, Annotated[float, Meta(ge=-100, le=100)]] | None,
        Meta(description="token ids, and what to add to their logits", extra_json_schema=BIASES),
    ] = None
    seed: Annotated[int | None, Meta(description="seed of the sampling, for repeatable answers; -1: random")] = None
    do_sample: Annotated[bool | None, Meta(description="false: the same as temperature 0")] = None
    ignore_eos: Annotated[bool | None, Meta(description="continue after the model's end token")] = None
    stop: Annotated[str | list[str] | None, Meta(description="strings that end the answer and are not part of it")] = None
    stop_token_ids: Annotated[list[Annotated[int, Meta(ge=0)]] | None, Meta(description="token ids that end the answer")] = None
    max_tokens: Annotated[int | None, Meta(description="maximum tokens of the answer; -1: up to the context's end")] = None

    LIMITS: ClassVar[tuple[str, ...]] = ("max_tokens",)
    """Fields that limit the answer's tokens; the first that is set counts. -1 is no limit."""

    def params(self, n_vocab: int, longest: int | None, **more: Any) -> SamplingParams:
        """Check the fields against ranges and vocabulary, and return them with `more` fields of SamplingParams; None is unset.

        `longest` limits the answer when the request does not. Raises InvalidField.
        """
        check_ranges(self)
        limit = first(*(getattr(self, name) for name in self.LIMITS), longest)
        options = {
            "temperature": 0.0 if self.do_sample is False else self.temperature,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "top_p": self.top_p,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "repeat_penalty": first(self.repetition_penalty, self.repeat_penalty),
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "penalty_window": first(self.penalty_window, self.repeat_last_n),
            "logit_bias": tuple((self.logit_bias or {}).items()),
            # As for other servers of such models, -1 is a random seed; the engine's seeds have 32 bits.
            "seed": None if self.seed is None or self.seed == -1 else self.seed & 0xFFFFFFFF,
            "ignore_eos": self.ignore_eos,
            "stop": tuple(filter(None, [self.stop] if isinstance(self.stop, str) else self.stop or ())),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "max_tokens": None if limit == -1 else limit,
            **more,
        }
        for field in ("logit_bias", "stop_token_ids"):
            for token in getattr(self, field) or ():
                if not 0 <= token < n_vocab:
                    raise InvalidField(field, f"token ids must be from 0 to {n_vocab - 1}, got {token}")
        return SamplingParams(**{name: value for name, value in options.items() if value is not None})
