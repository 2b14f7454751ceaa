"""Regular expressions as JSON schemas have them, for llguidance, which reads those of Rust."""

from __future__ import annotations

import re

_PATTERN = re.compile(
    r"\\[xu]\{[0-9a-fA-F]+\}|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\c[a-zA-Z]|\\[pP](?:\{[^}]*\}|\w)|\\.|\(\?[a-zA-Z-]+[:)]|.",
    re.DOTALL,
)
_ANY = r"[^\n\r\x{2028}\x{2029}]"
_SETS = {r"\s": r"[\s--\x{85}]", r"\S": r"[^\s\x{feff}]"}
_SETS_NEGATED = {r"\s": r"\s\x{feff}", r"\S": r"\S\x{85}"}
_LETTERS = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_UNWRITABLE = "pattern: a control character without a short escape in JSON cannot be enforced"
_WRITABLE = {8, 9, 10, 12, 13}
"""Control characters that _LAYOUT lets a string have."""


def translated(pattern: str) -> str:
    """A regular expression of JavaScript as one of Rust. Raises ValueError for what would mean something else.

    No set has the NUL: of one that has all control characters but not the quotation mark or the backslash, llguidance takes
    these too. A string cannot have it anyway, nor another control character without a short escape, which would be left out.
    """
    tokens = _PATTERN.findall(pattern)
    flags = {flag for token in tokens if token.startswith("(?") for flag in token[2:-1]}
    if flags - set("ims-"):
        raise ValueError(f"pattern: the flags {''.join(sorted(flags))} cannot be enforced")
    made, place = [], 0
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
        made.append(token)
    return "".join(made)


def _character_class(tokens: list[str], place: int) -> tuple[str, int]:
    """The class that begins behind its bracket, and where it ends. In one of Rust there are classes and operators, too."""
    negated = tokens[place : place + 1] == ["^"]
    place += negated
    made = [r"[^\x00" if negated else "["]
    begin = place
    while tokens[place : place + 1] != ["]"]:
        low, dash, high = [*tokens[place : place + 3], "", "", ""][:3]
        if not low:
            raise ValueError("pattern: unclosed character class")
        low = r"\x08" if low == r"\b" else low
        if dash == "-" and high not in ("", "]") and not _is_set(low) and not _is_set(high):
            made.append(f"{_literal(low)}-{_literal(high)}" if negated else _range(low, high))
            place += 3
        else:
            if negated or not is_unwritable(_character(low)):
                made.append(_literal(_set(low, negated=negated)))
            place += 1
    if place == begin:
        raise ValueError("pattern: an empty character class cannot be enforced")
    if not any(made[1:]) and not negated:
        raise ValueError(_UNWRITABLE)
    return "".join([*made, "]"]), place + 1


def _range(low: str, high: str) -> str:
    """A range without the control characters at its ends that a string cannot have."""
    first, last = _character(low), _character(high)
    if first is None or last is None or first > last:
        return f"{low}-{high}"
    while first <= last and is_unwritable(first):
        first += 1
    while first <= last and is_unwritable(last):
        last -= 1
    return rf"\x{{{first:x}}}-\x{{{last:x}}}" if first <= last else ""


def _set(token: str, *, negated: bool) -> str:
    """White space is what JavaScript takes for it and Rust, too."""
    if token[:2] in (r"\p", r"\P") and not negated:
        return rf"[{token}--\x00]"
    return (_SETS_NEGATED if negated else _SETS).get(token, token)


def _is_set(token: str) -> bool:
    return len(token) > 1 and token[1] in "dDwWsSpP"


def _literal(token: str) -> str:
    return "\\" + token if token in ("[", "&", "~", "-", "^") else token


def _character(token: str) -> int | None:
    """What one token of a regular expression stands for, when that is one character."""
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
    return character is not None and (character < 0x20 or character == 0x7F) and character not in _WRITABLE
