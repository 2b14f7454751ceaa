"""How long a client wants a model to stay, in the spellings that Ollama takes."""

from __future__ import annotations

import re

from locallab.errors import InvalidField

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"(\d+(?:\.\d*)?|\.\d+)({'|'.join(sorted(UNITS, key=len, reverse=True))})")
_WHOLE = re.compile(rf"(?P<sign>[-+]?)(?P<parts>(?:{_PART.pattern})+)")


def seconds(field: str, raw: float | str) -> float:
    """A number of seconds, or a text such as 5m, 1h30m or -1. Below zero is for ever. Raises InvalidField."""
    if not isinstance(raw, str):
        return float(raw)
    found = _WHOLE.fullmatch(raw.strip())
    if found:
        total = sum(float(amount) * UNITS[unit] for amount, unit in _PART.findall(found["parts"]))
        return -total if found["sign"] == "-" else total
    try:
        return float(raw)
    except ValueError:
        raise InvalidField(field, f"expected seconds or a duration such as 5m or 1h30m, got {raw!r}") from None
