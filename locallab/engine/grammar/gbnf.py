"""llama.cpp's grammars (GBNF) in Lark's syntax. Pure; the translation proper is llguidance's."""

from __future__ import annotations

import re

from llguidance.gbnf_to_lark import gbnf_to_lark

RULES = 1000
"""The translator's time grows with their square."""

_PARTS = re.compile(
    r"""
    (?P<literal> "(?:\\.|[^"\\])*"? | \[(?:\\.|[^\]\\])*\]? )
  | (?P<comment> \#[^\r\n]* )
  | (?P<name> [A-Za-z0-9_][A-Za-z0-9_-]* ) (?P<defined> \s*::= )?
  | (?P<bounds> \{[^{}]*\} )
  | (?P<any> \. )
    """,
    re.VERBOSE | re.DOTALL,
)
_CODE_POINT = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)


def to_lark(source: str) -> str:
    """The same grammar for llguidance; raises ValueError that says what is wrong with it.

    Three things are set right on the way: rules get names that stay different in Lark, where case has a meaning; code points
    are written so that both sides read them alike; and the root becomes a rule of its own, so that a grammar that is regular
    is matched as a whole, as one pattern.
    """
    defined = [match["name"] for match in _PARTS.finditer(source) if match["defined"]]
    if "root" not in defined:
        raise ValueError("there is no rule named root")
    if len(defined) > RULES:
        raise ValueError(f"must have at most {RULES} rules, has {len(defined)}")
    names = {name: f"r{number}" for number, name in enumerate(defined)}
    if len(names) < len(defined):
        raise ValueError(f"rule {next(name for name in names if defined.count(name) > 1)!r} is defined more than once")
    body = _PARTS.sub(lambda match: _part(match, names), source)
    try:
        return gbnf_to_lark(f"{body}\nroot ::= {names['root']}\n")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # the translator raises plain Exceptions, too
        raise ValueError(str(error)) from None


def _part(match: re.Match[str], names: dict[str, str]) -> str:
    if match["literal"]:
        return _CODE_POINT.sub(_code_point, match[0])
    if match["comment"]:
        return ""
    if match["any"]:
        return r"[^\x00]"
    if match["name"]:
        if match["name"] not in names:
            raise ValueError(f"rule {match['name']!r} is used, but not defined")
        return names[match["name"]] + (match["defined"] or "")
    return match[0]


def _code_point(match: re.Match[str]) -> str:
    """An escape as the translator reads it rightly: up to 0x7F by \\x, above as the character itself."""
    digits = match[1] or match[2] or match[3]
    if digits is None:
        return match[0]
    code = int(digits, 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"{match[0]} is no character")
    return f"\\x{code:02X}" if code < 0x80 else chr(code)
