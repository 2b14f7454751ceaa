"""JSON bodies decoded into structs: null is unset, unknown fields are ignored, errors name the field."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from locallab.engine.logprobs import MOST_LOGPROBS
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
"""Lowest and highest value of a field, and whether the lowest itself is allowed."""


async def read(request: Request, kind: type[Body]) -> Body:
    """Decode the request's body as `kind`. The content type is ignored: many clients send a wrong one or none."""
    return parse(await request.body(), kind)


def parse(body: bytes, kind: type[Body]) -> Body:
    """Decode JSON as `kind`, and check the ranges of its numbers. Raises RequestError and InvalidField."""
    if not body.strip():
        raise RequestError("the body is empty: send a JSON object")
    try:
        decoded: Body = _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        raise _readable(str(error)) from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise RequestError(f"the body is not valid JSON: {error}") from None
    check_ranges(decoded)  # for every body, as its description says
    return decoded


def first(*values: Any) -> Any:
    """Return the first value that is not None, or None."""
    return next((value for value in values if value is not None), None)


def check_ranges(body: msgspec.Struct) -> None:
    """Raise InvalidField for a number out of its range."""
    for name, (low, high, closed) in RANGES.items():
        value = getattr(body, name, None)
        if value is None or (low < value <= high) or (closed and value == low):
            continue
        upto = f" and at most {high:g}" if high < 2**31 - 1 else ""
        raise InvalidField(name, f"must be {'at least' if closed else 'above'} {low:g}{upto}, got {value:g}")


@functools.cache
def _decoder(kind: type[Body]) -> msgspec.json.Decoder[Body]:
    return msgspec.json.Decoder(kind)


def _readable(message: str) -> RequestError:
    """Convert msgspec's message, which ends in the path of the wrong value: `Expected ... - at `$.stop[0]``."""
    missing = re.fullmatch(r"Object missing required field `(\w+)`|Expected `[^`]*`, got `null` - at `\$\.(\w+)`", message)
    if missing:
        return InvalidField(missing[1] or missing[2], "is missing")
    found = re.fullmatch(r"(.*) - at (?:`key` in )?`\$\.?(.*?)(?:\[\.\.\.\])?`", message)
    reason = message if found is None else found[1]
    readable = reason.replace("`", "").replace(" | null", "").replace("Expected", "expected")
    return InvalidField(found[2], readable) if found and found[2] else RequestError(f"the body is wrong: {readable}")
