"""Fields that say how to sample an answer and when to stop it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField
from locallab.server.fields.body import check_ranges, first

BIASES = {"propertyNames": {"pattern": "^[0-9]{1,6}$"}}


class Sampling(msgspec.Struct, kw_only=True):
    """How an answer is drawn and where it ends: the fields that every generating route takes."""

    temperature: Annotated[float | None, Meta(description="how freely tokens are drawn; 0 takes the likeliest")] = None
    top_k: Annotated[int | None, Meta(description="draw among so many likeliest tokens; 0 and -1: all")] = None
    top_p: Annotated[
        float | None,
        Meta(description="draw among the likeliest tokens that have this share of the probability together; 1: all"),
    ] = None
    min_p: Annotated[
        float | None, Meta(description="leave out tokens less likely than this share of the likeliest; 0: none")
    ] = None
    typical_p: Annotated[
        float | None, Meta(description="draw among the most typical tokens of this share of the probability; 1: all")
    ] = None
    repetition_penalty: Annotated[float | None, Meta(description="makes tokens less likely that have occurred; 1: off")] = None
    repeat_penalty: Annotated[float | None, Meta(description="another name of repetition_penalty")] = None
    frequency_penalty: Annotated[float | None, Meta(description="makes a token less likely each time it has occurred")] = None
    presence_penalty: Annotated[float | None, Meta(description="makes a token less likely once it has occurred")] = None
    penalty_window: Annotated[int | None, Meta(description="last tokens that the penalties look at; -1: all")] = None
    repeat_last_n: Annotated[int | None, Meta(description="another name of penalty_window")] = None
    logit_bias: Annotated[
        dict[int, Annotated[float, Meta(ge=-100, le=100)]] | None,
        Meta(description="token ids, and what to add to their logits", extra_json_schema=BIASES),
    ] = None
    seed: Annotated[int | None, Meta(description="the same seed draws the same answer; -1: another each time")] = None
    do_sample: Annotated[bool | None, Meta(description="false: as temperature 0")] = None
    ignore_eos: Annotated[bool | None, Meta(description="go on after the model's end token")] = None
    stop: Annotated[str | list[str] | None, Meta(description="texts that end the answer, and are no part of it")] = None
    stop_token_ids: Annotated[list[Annotated[int, Meta(ge=0)]] | None, Meta(description="token ids that end the answer")] = None
    max_tokens: Annotated[int | None, Meta(description="most tokens of the answer; -1: as far as the context goes")] = None

    LIMITS: ClassVar[tuple[str, ...]] = ("max_tokens",)
    """Fields that limit the answer's tokens; the first that is set counts. -1 is no limit."""

    def params(self, n_vocab: int, longest: int | None, **more: Any) -> SamplingParams:
        """Check the fields against ranges and vocabulary, and return them with `more` fields of SamplingParams; None is unset.

        `longest` limits the answer when the request does not. Raises InvalidField.
        """
        check_ranges(self)
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
            "logit_bias": self._biases(n_vocab),
            "seed": self._seed(),
            "ignore_eos": self.ignore_eos,
            "stop": tuple(filter(None, [self.stop] if isinstance(self.stop, str) else self.stop or ())),
            "stop_token_ids": self._stop_token_ids(n_vocab),
            "max_tokens": self._limit(longest),
            **more,
        }
        return SamplingParams(**{name: value for name, value in options.items() if value is not None})

    def _limit(self, longest: int | None) -> int | None:
        value = first(*(getattr(self, name) for name in self.LIMITS), longest)
        return None if value == -1 else value

    def _seed(self) -> int | None:
        """-1 draws one, as for other servers of such models; the engine's seeds have 32 bits."""
        return None if self.seed is None or self.seed == -1 else self.seed & 0xFFFFFFFF

    def _biases(self, n_vocab: int) -> tuple[tuple[int, float], ...]:
        for token in self.logit_bias or ():
            _check_token("logit_bias", token, n_vocab)
        return tuple((self.logit_bias or {}).items())

    def _stop_token_ids(self, n_vocab: int) -> tuple[int, ...]:
        for token in self.stop_token_ids or ():
            _check_token("stop_token_ids", token, n_vocab)
        return tuple(self.stop_token_ids or ())


def _check_token(field: str, token: int, n_vocab: int) -> None:
    if not 0 <= token < n_vocab:
        raise InvalidField(field, f"token ids must be from 0 to {n_vocab - 1}, got {token}")
