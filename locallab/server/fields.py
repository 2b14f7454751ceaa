"""Request bodies: JSON into structs. null is not set, unknown fields are ignored, anything wrong is named by its field."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request

from locallab.chat.messages import ROLES, TEXT_PARTS
from locallab.engine.logprobs import MOST_LOGPROBS
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField, RequestError

Body = TypeVar("Body", bound=msgspec.Struct)

INFINITY = float("inf")

RANGES: Mapping[str, tuple[float, float, bool]] = {
    "temperature": (0, 100, True),
    "top_k": (-1, 2**31 - 1, True),
    "top_p": (0, 1, False),
    "min_p": (0, 1, True),
    "typical_p": (0, 1, False),
    "repetition_penalty": (0, 100, False),
    "repeat_penalty": (0, 100, False),
    "frequency_penalty": (-2, 2, True),
    "presence_penalty": (-2, 2, True),
    "penalty_window": (-1, 2**31 - 1, True),
    "repeat_last_n": (-1, 2**31 - 1, True),
    "seed": (-(2**63), 2**64 - 1, True),
    "n": (1, 128, True),
    "dimensions": (1, INFINITY, True),
    "top_n": (1, INFINITY, True),
    "best_of": (1, 128, True),
    "logprobs": (0, MOST_LOGPROBS, True),
    "top_logprobs": (0, MOST_LOGPROBS, True),
    "n_probs": (0, MOST_LOGPROBS, True),
    "max_length": (-1, INFINITY, True),
    "reasoning_budget": (0, INFINITY, True),
    "max_tokens": (-1, INFINITY, True),
    "max_completion_tokens": (-1, INFINITY, True),
    "max_output_tokens": (-1, INFINITY, True),
    "num_predict": (-2, INFINITY, True),
    "n_predict": (-1, INFINITY, True),
    "num_ctx": (0, INFINITY, True),
}
"""Lowest and highest value of a field, and whether the lowest is allowed itself."""


BIASES = {"propertyNames": {"pattern": "^[0-9]{1,6}$"}}
TEXT = {"type": ["string", "null"]}
PARTS = [
    {"type": "object", "properties": {"type": {"enum": [kind]}, key: TEXT}, "required": ["type"]}
    for kind, key in TEXT_PARTS.items()
]
BARE_PART = {"type": "object", "properties": {"type": {"enum": [None]}, "text": TEXT}}
PARTS_LIST = {"type": "array", "items": {"anyOf": [{"type": "string"}, *PARTS, BARE_PART]}}
MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {"role": {"enum": list(ROLES)}, "content": {"anyOf": [TEXT, PARTS_LIST]}, "name": TEXT},
        "required": ["role"],
    },
}
"""What JSON schemas say of fields whose values are checked elsewhere."""


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

    def params(self, n_vocab: int, longest: int | None) -> SamplingParams:
        """Checked and neutral. `longest` is the limit of the answer when the request sets none."""
        check_ranges(self)
        given = {
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
        }
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})

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


async def read(request: Request, kind: type[Body]) -> Body:
    """The request's body as `kind`. The content type is not looked at: many clients send a wrong one or none."""
    return parse(await request.body(), kind)


def parse(body: bytes, kind: type[Body]) -> Body:
    if not body.strip():
        raise RequestError("the body is empty: send a JSON object")
    try:
        decoded: Body = _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        raise _wrong(str(error)) from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise RequestError(f"the body is not valid JSON: {error}") from None
    check_ranges(decoded)  # of every body: its description says so
    return decoded


def first(*values: Any) -> Any:
    """The first value that is set."""
    return next((value for value in values if value is not None), None)


def check_ranges(body: msgspec.Struct) -> None:
    """Raises InvalidField for a number out of its range."""
    for name, (low, high, closed) in RANGES.items():
        value = getattr(body, name, None)
        if value is None or (low < value <= high) or (closed and value == low):
            continue
        upto = f" and at most {high:g}" if high < 2**31 - 1 else ""
        raise InvalidField(name, f"must be {'at least' if closed else 'above'} {low:g}{upto}, got {value:g}")


def _check_token(field: str, token: int, n_vocab: int) -> None:
    if not 0 <= token < n_vocab:
        raise InvalidField(field, f"token ids must be from 0 to {n_vocab - 1}, got {token}")


@functools.cache
def _decoder(kind: type[Body]) -> msgspec.json.Decoder[Body]:
    return msgspec.json.Decoder(kind)


def _wrong(message: str) -> RequestError:
    """msgspec's message ends in the path of what is wrong: `Expected ... - at `$.stop[0]``."""
    missing = re.fullmatch(r"Object missing required field `(\w+)`|Expected `[^`]*`, got `null` - at `\$\.(\w+)`", message)
    if missing:
        return InvalidField(missing[1] or missing[2], "is missing")
    found = re.fullmatch(r"(.*) - at (?:`key` in )?`\$\.?(.*?)(?:\[\.\.\.\])?`", message)
    reason = message if found is None else found[1]
    readable = reason.replace("`", "").replace(" | null", "").replace("Expected", "expected")
    return InvalidField(found[2], readable) if found and found[2] else RequestError(f"the body is wrong: {readable}")
