"""Custom tools: tools whose input is a text, free or of a grammar, where functions take JSON.

To a model such a tool is a function with one text. Its grammar becomes the pattern of that text, so that every format of calls
can enforce it; a call's text is read out of the arguments again while it arrives.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from locallab.chat.json_scanner import Malformed, ObjectScanner
from locallab.chat.json_text import loads

INPUT = "input"
"""The name of the one argument."""

COMMON: Mapping[str, str] = {
    "LF": r"\n",
    "CR": r"\r",
    "NEWLINE": r"(?:\r?\n)+",
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
    "DIGIT": r"[0-9]",
    "HEXDIGIT": r"[0-9a-fA-F]",
    "INT": r"[0-9]+",
    "SIGNED_INT": r"[+-]?[0-9]+",
    "DECIMAL": r"(?:[0-9]+\.[0-9]*|\.[0-9]+)",
    "FLOAT": r"(?:[0-9]+[eE][+-]?[0-9]+|(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)",
    "NUMBER": r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?",
    "SIGNED_NUMBER": r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?",
    "LCASE_LETTER": r"[a-z]",
    "UCASE_LETTER": r"[A-Z]",
    "LETTER": r"[a-zA-Z]",
    "WORD": r"[a-zA-Z]+",
    "CNAME": r"[a-zA-Z_][a-zA-Z0-9_]*",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\.)*"',
}
"""The terminals of Lark's module `common`."""

NOTHING = r"[^\s\S]"
"""A pattern that no text matches."""

LONGEST_PATTERN = 100_000
DEEPEST = 6
"""Characters of the pattern, and times that a rule may be inside itself; fewer where the pattern would be longer."""

_TOKEN = re.compile(
    r"""(?P<blank>\s+|//[^\n]*|\#[^\n]*)
    |(?P<range>"(?:\\.|[^"\\\n])+"\s*\.\.\s*"(?:\\.|[^"\\\n])+")
    |(?P<string>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?![/*])(?:\\.|[^/\\\n])+/[imslux]*)
    |(?P<repeat>~\s*\d+(?:\s*\.\.\s*\d+)?)
    |(?P<alias>->\s*\w+)
    |(?P<name>[?!]?[A-Za-z_]\w*)
    |(?P<mark>[()\[\]|?*+])""",
    re.VERBOSE,
)
_BEGIN = re.compile(r"^(?:(?P<name>[?!]?[A-Za-z_]\w*)(?:\.-?\d+)?\s*:|%(?P<directive>\w+))", re.MULTILINE)
_MARKS = {"(": "(?:", "[": "(?:", "]": ")?"}


def pattern_of_lark(definition: str) -> str:
    """Return a regular expression, in Rust's syntax, of texts that a Lark grammar describes: all of them, or, if its rules
    contain themselves, those nested at most DEEPEST deep. Raises ValueError for a grammar that cannot be read."""
    if len(definition) <= LONGEST_PATTERN:
        grammar = _Grammar(definition)
        for depth in range(DEEPEST, 0, -1):
            try:
                return grammar.pattern("start", depth)
            except _TooLong:
                continue
            except RecursionError:
                raise ValueError("its rules are nested too deeply") from None
    raise ValueError(f"the grammar is too large: as one pattern it has more than {LONGEST_PATTERN} characters")


class _TooLong(Exception):
    pass


class _Grammar:
    """The rules of a Lark grammar by their names, without `?` and `!`, each as its tokens: kind and text."""

    def __init__(self, definition: str) -> None:
        self.rules: dict[str, list[tuple[str, str]]] = {}
        self.ignored: list[tuple[str, str]] = []
        begins = list(_BEGIN.finditer(definition))
        if definition[: begins[0].start() if begins else None].strip():
            raise ValueError("expected rules such as start: ...")
        for at, begin in enumerate(begins):
            end = begins[at + 1].start() if at + 1 < len(begins) else len(definition)
            body = definition[begin.end() : end]
            match begin["directive"]:
                case None:
                    self.rules[begin["name"].lstrip("?!")] = list(_tokens(body))
                case "import":
                    self._import(body)
                case "ignore":
                    self.ignored += [*([("mark", "|")] if self.ignored else []), *_tokens(body)]
                case directive:
                    raise ValueError(f"%{directive} is not supported")
        if "start" not in self.rules:
            raise ValueError("the rule start is missing")

    def pattern(self, start: str, depth: int) -> str:
        """Return the pattern of a rule. Raises ValueError, or _TooLong."""
        room = [LONGEST_PATTERN]
        ignored = f"(?:{self._part(self.ignored, depth, {}, room, '')})*" if self.ignored else ""
        return ignored + self._part([("name", start)], depth, {}, room, ignored)

    def _part(self, tokens: list[tuple[str, str]], depth: int, inside: dict[str, int], room: list[int], ignored: str) -> str:
        parts: list[str] = []
        for kind, text in tokens:
            if kind == "name" and text in self.rules:
                if inside.get(text, 0) >= depth:
                    part = NOTHING
                else:
                    of_rule = ignored if text.lower() == text else ""
                    nested = {**inside, text: inside.get(text, 0) + 1}
                    part = f"(?:{self._part(self.rules[text], depth, nested, room, of_rule)})"
                    if ignored and not of_rule:
                        part = f"(?:{part}{ignored})"
            elif kind == "name":
                raise ValueError(f"the rule {text} is missing")
            elif kind in ("string", "regex"):
                part = f"(?:{text}{ignored})" if ignored else text
            else:
                part = text
            room[0] -= 8 if kind == "name" else len(part)
            if room[0] < 0:
                raise _TooLong
            parts.append(part)
        return "".join(parts)

    def _import(self, body: str) -> None:
        found = re.fullmatch(r"\s+common\s*(?:\.\s*(\w+)\s*(?:->\s*(\w+))?|\(([\w\s,]*)\))\s*", re.sub(r"//[^\n]*", "", body))
        if not found:
            raise ValueError("%import: only terminals of common can be imported")
        for name in [found[1]] if found[1] else re.findall(r"\w+", found[3]):
            if name not in COMMON:
                raise ValueError(f"%import: common.{name} is not known; known: {', '.join(COMMON)}")
            self.rules[found[2] or name] = [("regex", f"(?:{COMMON[name]})")]


def _tokens(body: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a rule, strings and regular expressions already as patterns. Raises ValueError."""
    place = 0
    while place < len(body):
        found = _TOKEN.match(body, place)
        if found is None:
            raise ValueError(f"cannot read {body[place : place + 20]!r}")
        place, kind, text = found.end(), found.lastgroup or "", found[0]
        match kind:
            case "string":
                value = re.escape(_value(text.removesuffix("i"))).replace("\\ ", " ")
                yield kind, f"(?i:{value})" if text.endswith("i") else f"(?:{value})"
            case "range":
                low, high = (re.escape(_value(end)) for end in re.findall(r'"(?:\\.|[^"\\])+"', text))
                yield "regex", f"[{low}-{high}]"
            case "regex":
                source, _, flags = text[1:].rpartition("/")
                used = "".join(sorted(set(flags) & set("ims")))
                source = source.replace("\\/", "/")
                yield kind, f"(?{used}:{source})" if used else f"(?:{source})"
            case "repeat":
                low, _, high = re.sub(r"[~\s]", "", text).partition("..")
                yield "mark", f"{{{low},{high}}}" if high else f"{{{low}}}"
            case "name":
                yield kind, text.lstrip("?!")
            case "mark":
                yield kind, _MARKS.get(text, text)


def _value(literal: str) -> str:
    try:
        value = ast.literal_eval(literal)
    except (SyntaxError, ValueError):
        raise ValueError(f"{literal} is no string") from None
    return str(value)


def parameters(syntax: str = "", definition: str = "") -> dict[str, Any]:
    """Return the JSON schema of a custom tool's one argument, as models are shown it."""
    text = f"text that matches this {syntax} grammar:\n{definition}" if definition else "plain text"
    schema = {"type": "string", "description": text}
    return {"type": "object", "properties": {INPUT: schema}, "required": [INPUT], "additionalProperties": False}


_READY = re.compile(
    r'(?:[^"\\]|\\[^u]|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[0-9a-fA-F]{4}|(?=[^\\]|\\[^u]))|\\u(?![dD][89abAB])[0-9a-fA-F]{4})+'
)
"""Characters of a JSON string that are whole, whatever follows."""


@dataclasses.dataclass(slots=True)
class InputReader:
    """Reads the input of a custom tool out of the arguments of its call, which arrive in pieces."""

    _scanner: ObjectScanner = dataclasses.field(default_factory=ObjectScanner)
    _raw: str = ""
    _begun: bool = False

    def feed(self, text: str) -> str:
        """Return the next part of the input."""
        with contextlib.suppress(Malformed):
            for piece in self._scanner.feed(text):
                self._raw += piece.text if piece.key == INPUT else ""
        if not self._begun and self._raw:
            self._begun, self._raw = True, self._raw.removeprefix('"')
        found = _READY.match(self._raw)
        if found is None:
            return ""
        self._raw = self._raw[found.end() :]
        try:
            return str(loads(f'"{found[0]}"'))
        except ValueError:
            return found[0]
