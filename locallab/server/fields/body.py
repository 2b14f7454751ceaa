"""JSON bodies decoded into structs: null is unset, unknown fields are noted, errors name the field."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from locallab.chat.json_text import without_halves
from locallab.engine.logprobs import MOST_LOGPROBS
from locallab.errors import InvalidField, RequestError
from locallab.server.fields.table import check_fields, nested

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
    "top_n_sigma": (-1000, 1000, True),
    "xtc_probability": (0, 1, True),
    "xtc_threshold": (0, 1, True),
    "dry_multiplier": (0, 100, True),
    "dry_base": (0, 100, True),
    "dry_allowed_length": (0, 2**31 - 1, True),
    "dry_penalty_last_n": (-1, 2**31 - 1, True),
    "dynatemp_range": (0, 100, True),
    "dynatemp_exponent": (0, 10, True),
    "mirostat": (0, 2, True),
    "mirostat_tau": (0, 100, True),
    "mirostat_eta": (0, 1, True),
    "adaptive_target": (-1000, 1, True),
    "adaptive_decay": (0, 0.99, True),
    "min_keep": (0, 2**31 - 1, True),
    "min_tokens": (0, INFINITY, True),
    "t_max_predict_ms": (-1, 2**53, True),
    "seed": (-(2**63), 2**64 - 1, True),
    "n": (1, 128, True),
    "n_cmpl": (1, 128, True),
    "dimensions": (1, INFINITY, True),
    "embd_normalize": (0, 2**31 - 1, True),
    "top_n": (1, INFINITY, True),
    "max_tokens_per_doc": (1, INFINITY, True),
    "best_of": (1, 128, True),
    "logprobs": (0, MOST_LOGPROBS, True),
    "top_logprobs": (0, MOST_LOGPROBS, True),
    "prompt_logprobs": (0, MOST_LOGPROBS, True),
    "n_probs": (0, MOST_LOGPROBS, True),
    "max_length": (-1, INFINITY, True),
    "max_time": (0, 2**31 - 1, True),
    "reasoning_budget": (0, INFINITY, True),
    "reasoning_budget_tokens": (-1, INFINITY, True),
    "thinking_budget_tokens": (-1, INFINITY, True),
    "thinking_token_budget": (-1, INFINITY, True),
    "truncate_prompt_tokens": (-1, INFINITY, True),
    "max_tokens": (-1, INFINITY, True),
    "max_completion_tokens": (-1, INFINITY, True),
    "max_output_tokens": (-1, INFINITY, True),
    "num_predict": (-2, INFINITY, True),
    "n_predict": (-1, INFINITY, True),
    "num_ctx": (0, INFINITY, True),
}
"""Lowest and highest value of a field, and whether the lowest itself is allowed."""

LENGTHS: Mapping[str, int] = {
    "messages": 32_768,
    "history": 32_768,
    "input": 32_768,
    "prompt": 2048,
    "prompts": 2048,
    "documents": 16_384,
    "texts": 16_384,
    **dict.fromkeys(("text_1", "text_2", "queries", "items", "data_1", "data_2"), 16_384),
    "content": 32_768,
    "response_fields": 1024,
    "tools": 4096,
    "stop": 1024,
    "stop_sequences": 1024,
}
"""Maximum number of items of a list. A list of token ids is bounded by the model's context instead."""


async def read(request: Request, kind: type[Body], empty: bytes = b"") -> Body:
    """Decode the request's body as `kind`; notes about its fields go into the response's header.

    `empty` stands for no body. The content type is ignored: many clients send a wrong one or none.
    """
    request.state.notes = notes = list[str]()
    return parse(await request.body() or empty, kind, notes)


def parse(body: bytes, kind: type[Body], notes: list[str] | None = None) -> Body:
    """Decode JSON as `kind`, halves of surrogate pairs as U+FFFD, and check the ranges of its numbers and the
    lengths of its lists.

    Fields that the struct does not have are noted or refused. Raises RequestError and InvalidField.
    """
    if not body.strip():
        raise RequestError("the body is empty: send a JSON object")
    try:
        decoded: Body = _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        decoded = _with_whole_numbers(body, kind, str(error))
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except ValueError as error:  # not JSON, or not UTF-8
        if (mended := without_halves(body)) != body:
            return parse(mended, kind, notes)
        raise RequestError(f"the body is not valid JSON: {error}") from None
    check_ranges(decoded)  # for every body, as its description says
    for name in nested(kind):
        _check_inner(name, getattr(decoded, name))
    check_lengths(decoded)
    found = check_fields(body, kind)
    if notes is not None:
        notes += found
    return decoded


def first(*values: Any) -> Any:
    """Return the first value that is not None, or None."""
    return next((value for value in values if value is not None), None)


def whole(value: Any, lists: int = 2) -> Any:
    """Return 20 for 20.0: JSON has one kind of number. So with the numbers in a list, and in `lists - 1` lists in it; anything
    else is unchanged."""
    if lists and isinstance(value, list) and any(isinstance(each, float | list) for each in value):
        return [whole(each, lists - 1) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_ranges(body: msgspec.Struct) -> None:
    """Raise InvalidField for a number out of its range."""
    for name, (low, high, closed) in RANGES.items():
        value = getattr(body, name, None)
        if value is None or (low < value <= high) or (closed and value == low):
            continue
        upto = "" if (value < low and high >= 2**31 - 1) or high == INFINITY else f" and at most {_figure(high)}"
        raise InvalidField(name, f"must be {'at least' if closed else 'above'} {_figure(low)}{upto}, got {_figure(value)}")


def _check_inner(field: str, inner: msgspec.Struct | None) -> None:
    """As `check_ranges`, for a struct that is the value of a field."""
    try:
        if inner is not None:
            check_ranges(inner)
    except InvalidField as error:
        raise InvalidField(f"{field}.{error.field}", error.reason) from None


def _figure(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_lengths(body: msgspec.Struct) -> None:
    """Raise InvalidField for a list that is too long."""
    for name, most in LENGTHS.items():
        value = getattr(body, name, None)
        if isinstance(value, list) and len(value) > most and type(value[0]) is not int:
            raise InvalidField(name, f"must have at most {most} items, has {len(value)}")


@functools.cache
def _decoder(kind: type[Body]) -> msgspec.json.Decoder[Body]:
    return msgspec.json.Decoder(kind)


def _with_whole_numbers(body: bytes, kind: type[Body], message: str) -> Body:
    """Decode once more what `message` is the first error of, with 20.0 where 20 belongs as 20: many clients know only one kind
    of number. Raises RequestError and InvalidField for all other errors."""
    raw = msgspec.json.decode(body) if _FLOAT.fullmatch(message) else None
    while (found := _FLOAT.fullmatch(message)) and _make_whole(raw, found[1]):
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as error:
            message = str(error)
    raise _readable(message)


_FLOAT = re.compile(r"Expected `[^`]*\bint\b[^`]*`, got `float` - at `\$\.(.*?)(?:\[\d+\])?`")


def _make_whole(raw: Any, path: str) -> bool:
    """Convert the whole float at a path such as `options.num_ctx`, or those in the list there. Return whether there were any.
    Mutates `raw`."""
    *above, name = path.split(".")
    try:
        for key in above:
            raw = raw[key]
        value = raw[name]
    except (KeyError, TypeError):
        return False
    raw[name] = whole(value)
    return not _same(raw[name], value)


def _same(one: Any, other: Any) -> bool:
    """Return whether two equal values have the same types of numbers."""
    return type(one) is type(other) and (not isinstance(one, list) or all(map(_same, one, other)))


def _readable(message: str) -> RequestError:
    """Convert msgspec's message, which ends in the path of the wrong value: `Expected ... - at `$.stop[0]``."""
    missing = re.fullmatch(r"Object missing required field `(\w+)`|Expected `[^`]*`, got `null` - at `\$\.(\w+)`", message)
    if missing:
        return InvalidField(missing[1] or missing[2], "is missing")
    found = re.fullmatch(r"(.*) - at (?:`key` in )?`\$\.?(.*?)(?:\[\.\.\.\])?`", message)
    reason = message if found is None else found[1]
    readable = reason.replace("`", "").replace(" | null", "").replace("Expected", "expected")
    return InvalidField(found[2], readable) if found and found[2] else RequestError(f"the body is wrong: {readable}")
