"""JSON written by clients and models: halves of surrogate pairs become U+FFFD, and no nesting ends in a RecursionError."""

from __future__ import annotations

import json
import re
from typing import Any

_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = re.compile(rb"\\u(?:[dD][89abAB][0-9a-fA-F]{2}(?!%b)|[dD][c-fC-F][0-9a-fA-F]{2}(?<!%b%b))" % (_LOW, _HIGH, _LOW))
_RAW_HALF = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")  # a half that was written as UTF-8, which has none

MOST_HALVES = 100_000
"""Replacements in one text; each takes time."""

MOST_LEVELS = 100
"""Nesting of a call's arguments that templates are given as a value; the text of deeper ones stays text."""


def without_halves(data: bytes) -> bytes:
    """Return JSON in which U+FFFD stands for each half of a surrogate pair: such halves are no characters, and cannot be
    written as UTF-8."""

    def replaced(half: re.Match[bytes]) -> bytes:
        begin = at = half.start()
        while at and half.string[at - 1] == 0x5C:
            at -= 1
        return half[0] if (begin - at) % 2 else b"\\ufffd"  # behind an escaped backslash it is text

    return _HALF.sub(replaced, _RAW_HALF.sub(b"\xef\xbf\xbd", data), count=MOST_HALVES)


def loads(text: str) -> Any:
    """Parse JSON of at most MOST_LEVELS levels. Raises ValueError."""
    if "\\u" in text:
        text = without_halves(text.encode("utf-8", "replace")).decode()
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _deeper(value, MOST_LEVELS):
        raise ValueError("nested too deeply")
    return value


def dumps(value: object) -> str:
    """Write a client's value as JSON; one that is nested too deeply is written as a text that says so."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return '"(nested too deeply)"'


def _deeper(value: object, levels: int) -> bool:
    level = [value]
    for _ in range(levels + 1):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        if not inner:
            return False
        level = [child for each in inner for child in each]
    return True
