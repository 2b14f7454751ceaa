"""Translation of the regular expressions of JSON schemas, which are JavaScript's, to those of Rust, which llguidance reads."""

from __future__ import annotations

import re

_PATTERN = re.compile(
    r"\\[xu]\{[0-9a-fA-F]+\}|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\c[a-zA-Z]|\\[pP](?:\{[^{}\\]{0,64}\}|\w)|\\.|\(\?[a-zA-Z-]+[:)]|.",
    re.DOTALL,
)
_ANY = r"[^\n\r\x{2028}\x{2029}]"
_SETS = {r"\s": r"[\s--\x{85}]", r"\S": r"[^\s\x{feff}]"}
_SETS_NEGATED = {r"\s": r"\s\x{feff}", r"\S": r"\S\x{85}"}
_LETTERS = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_UNWRITABLE = "pattern: a control character without a short escape in JSON cannot be enforced"
_WRITABLE = {8, 9, 10, 12, 13}
"""Control characters with a short escape, the only ones that a string may have in the layout of `grammars`."""


def translate(pattern: str) -> str:
    """Translate a regular expression of JavaScript to Rust. Raises ValueError for one that would mean something else.

    No set has the NUL: where a set has all control characters but not the quotation mark or the backslash, llguidance adds
    these two. A string cannot have the NUL anyway, nor any other control character without a short escape; ranges leave those
    out.
    """
    tokens = _PATTERN.findall(pattern)
    flags = {flag for token in tokens if token.startswith("(?") for flag in token[2:-1]}
    if flags - set("ims-"):
        raise ValueError(f"pattern: the flags {''.join(sorted(flags))} cannot be enforced")
    parts, place = [], 0
    while place < len(tokens):
        token = tokens[place]
        place += 1
        if token == "[":
            token, place = _character_class(tokens, place)
        elif token == "." and "s" not in flags:
            token = _ANY
        elif token in (r"\<", r"\>"):
            token = token[1]
        else:
            token = _set(token, negated=False)
            if is_unwritable(_character(token)):
                raise ValueError(_UNWRITABLE)
        parts.append(token)
    return "".join(parts)


def _character_class(tokens: list[str], place: int) -> tuple[str, int]:
    """Translate the class whose first token is at `place`, and return it with the place behind its end.

    Rust's classes may have classes and operators inside, so those are escaped.
    """
    negated = tokens[place : place + 1] == ["^"]
    place += negated
    parts = [r"[^\x00" if negated else "["]
    begin = place
    while tokens[place : place + 1] != ["]"]:
        low, dash, high = [*tokens[place : place + 3], "", "", ""][:3]
        if not low:
            raise ValueError("pattern: unclosed character class")
        low = r"\x08" if low == r"\b" else low
        if dash == "-" and high not in ("", "]") and not _is_set(low) and not _is_set(high):
            parts.append(f"{_literal(low)}-{_literal(high)}" if negated else _range(low, high))
            place += 3
        else:
            if negated or not is_unwritable(_character(low)):
                parts.append(_literal(_set(low, negated=negated)))
            place += 1
    if place == begin:
        raise ValueError("pattern: an empty character class cannot be enforced")
    if not any(parts[1:]) and not negated:
        raise ValueError(_UNWRITABLE)
    return "".join([*parts, "]"]), place + 1


def _range(low: str, high: str) -> str:
    """Translate a range, without the control characters at its ends that a string cannot have; "" if none is left."""
    first, last = _character(low), _character(high)
    if first is None or last is None or first > last:
        return f"{low}-{high}"
    while first <= last and is_unwritable(first):
        first += 1
    while first <= last and is_unwritable(last):
        last -= 1
    return rf"\x{{{first:x}}}-\x{{{last:x}}}" if first <= last else ""


def _set(token: str, *, negated: bool) -> str:
    """Translate a set such as \\s, where white space is what both languages count as such; keep other tokens as they are."""
    if token[:2] in (r"\p", r"\P") and not negated:
        return rf"[{token}--\x00]"
    return (_SETS_NEGATED if negated else _SETS).get(token, token)


def _is_set(token: str) -> bool:
    return len(token) > 1 and token[1] in "dDwWsSpP"


def _literal(token: str) -> str:
    """Escape a character that is an operator inside Rust's classes."""
    return "\\" + token if token in ("[", "&", "~", "-", "^") else token


def _character(token: str) -> int | None:
    """Return the code point that a token stands for; None for a token that is no single character."""
    if len(token) == 1:
        return ord(token)
    if token.startswith((r"\x", r"\u")) and len(token) > 2:
        return int(token[2:].strip("{}"), 16)
    if token.startswith(r"\c"):
        return ord(token[2]) & 31
    if token[0] != "\\" or len(token) > 2 or token == r"\b":
        return None
    return _LETTERS.get(token[1]) if token[1].isalnum() else ord(token[1])


def is_unwritable(character: int | None) -> bool:
    """Return True for a control character without a short escape in JSON."""
    return character is not None and (character < 0x20 or character == 0x7F) and character not in _WRITABLE
