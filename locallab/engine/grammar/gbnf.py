"""Translation of GBNF, llama.cpp's grammar format, to Lark. Pure; llguidance's converter does most of it."""

from __future__ import annotations

import re

from llguidance.gbnf_to_lark import gbnf_to_lark

from locallab.engine.grammar.bounds import RULES

_PARTS = re.compile(
    r"""
    (?P<literal> "(?:\\.|[^"\\])*"? | \[(?:\\.|[^\]\\])*\]? )
  | (?P<comment> \#[^\r\n]* )
  | (?P<name> [A-Za-z0-9_][A-Za-z0-9_-]* ) (?P<definition> \s*::= )?
  | (?P<bounds> \{[^{}]*\} )
  | (?P<any> \. )
    """,
    re.VERBOSE | re.DOTALL,
)
_CODE_POINT = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)


def to_lark(source: str) -> str:
    """Translate a GBNF grammar for llguidance. Raises ValueError with the reason for one that is invalid.

    Three things are corrected on the way: rules get names that stay different in Lark, where case has a meaning; code points
    are written so that both sides read them alike; and the root gets a rule of its own, so that llguidance matches a regular
    grammar as one pattern.
    """
    rules = [match["name"] for match in _PARTS.finditer(source) if match["definition"]]
    if "root" not in rules:
        raise ValueError("there is no rule named root")
    if len(rules) > RULES:  # the converter's time grows with their square
        raise ValueError(f"must have at most {RULES} rules, has {len(rules)}")
    names = {name: f"r{number}" for number, name in enumerate(rules)}
    if len(names) < len(rules):
        raise ValueError(f"rule {next(name for name in names if rules.count(name) > 1)!r} is defined more than once")

    def translate(part: re.Match[str]) -> str:
        if part["comment"]:
            return ""
        if part["any"]:
            return r"[^\x00]"
        if part["name"]:
            if part["name"] not in names:
                raise ValueError(f"rule {part['name']!r} is used, but not defined")
            return names[part["name"]] + (part["definition"] or "")
        return _CODE_POINT.sub(_rewrite_escape, part[0]) if part["literal"] else part[0]

    body = _PARTS.sub(translate, source)
    try:
        return gbnf_to_lark(f"{body}\nroot ::= {names['root']}\n")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # the converter raises plain Exceptions, too
        raise ValueError(str(error)) from None


def _rewrite_escape(match: re.Match[str]) -> str:
    """Rewrite a code point in a form that the converter reads correctly: \\x up to 0x7F, above it the character itself."""
    digits = match[1] or match[2] or match[3]
    if digits is None:
        return match[0]
    code = int(digits, 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"{match[0]} is no character")
    return f"\\x{code:02X}" if code < 0x80 else chr(code)
