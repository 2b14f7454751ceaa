"""The field `logit_bias`: OpenAI's object, and llama.cpp's pairs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from locallab.errors import InvalidField
from locallab.server.fields.body import whole

MOST = 100
"""The largest bias."""

_BIAS = {"anyOf": [{"type": "number", "minimum": -MOST, "maximum": MOST}, {"const": False}]}
_PAIR = {
    "type": "array",
    "prefixItems": [{"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}]}, _BIAS],
    "minItems": 2,
    "maxItems": 2,
}
BIASES = {
    "anyOf": [
        {"type": "object", "propertyNames": {"minLength": 1}, "additionalProperties": _BIAS},
        {"type": "array", "items": _PAIR},
        {"type": "null"},
    ]
}
"""The JSON schema of what `read_biases` reads."""


def read_biases(raw: object) -> tuple[tuple[int | str, float], ...]:
    """Read biases by token or by text; in an object a key of digits is a token id. Raises InvalidField."""
    if raw is None:
        return ()
    pairs: Iterable[Any]
    if isinstance(raw, Mapping):
        pairs = [(int(key) if re.fullmatch(r"[0-9]{1,18}", key) else key, value) for key, value in raw.items()]
    elif isinstance(raw, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in raw):
        pairs = raw
    else:
        raise InvalidField("logit_bias", 'expected an object, or a list of pairs such as [15043, 1.5] or ["text", false]')
    return tuple((_of(of), _bias(value)) for of, value in pairs)


def _of(raw: object) -> int | str:
    raw = whole(raw)
    if isinstance(raw, bool) or not isinstance(raw, int | str) or raw == "" or (isinstance(raw, int) and raw < 0):
        raise InvalidField("logit_bias", f"expected a token id or a text, got {raw!r}")
    return raw


def _bias(raw: object) -> float:
    if raw is False:
        return -math.inf
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not -MOST <= raw <= MOST:
        raise InvalidField("logit_bias", f"a bias must be a number from -{MOST} to {MOST}, or false, got {raw!r}")
    return float(raw)
