"""Bounds on the size of grammars.

llguidance cannot be interrupted while it compiles, and its own limits leave room for sources of a few hundred characters that
take minutes and gigabytes. What costs more than about a second is therefore refused before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llguidance import LLParserLimits

LONGEST = 1 << 18
"""Maximum characters of a source."""
LONGEST_REGEX = 1 << 16
LONGEST_RULES = 1 << 16
"""Maximum characters of a Lark grammar, without the schemas in it."""
RULES = 1000
"""Maximum rules of a grammar, and schemas in it: beyond it, compile time may grow with their cube."""
OPERATORS = 1500
"""Maximum operators in all regular expressions: the memory grows with the square of those of one, the time with the cube."""
NAMES = 1000
"""Maximum properties of an object: the time grows with their square."""
NAME_PATTERNS = 64
"""Maximum patterns of properties in a schema: each is compared with each."""
COPIES = 10_000
"""Maximum schemas that one becomes when the parts of its allOf are put together."""

INTERSECTIONS = 6
"""Maximum operators & of terminals: the states of all their patterns multiply."""

LIMITS = LLParserLimits(verbose_errors=False, step_max_items=20_000, step_lexer_fuel=50_000)
"""llguidance's own limits: those of a step are lower than its defaults, with which one mask may take two seconds."""

_RULE = re.compile(r"^[^\S\n]*[?!]?(\w[^\n:]*):", re.MULTILINE)
_WORD = re.compile(r"\w+")
_REGEX = re.compile(r"/(?:\\.|[^/\\\n])*/")
_OPERATOR = re.compile(r"[*+?{(]")


def operators(pattern: str) -> int:
    """Return how many operators a regular expression has, at most."""
    return len(_OPERATOR.findall(pattern))


def check_length(source: str, most: int = LONGEST) -> None:
    """Raise ValueError for a source that is too long."""
    if len(source) > most:
        raise ValueError(f"must have at most {most} characters, has {len(source)}")


def check_regex(patterns: Iterable[str]) -> None:
    """Raise ValueError for regular expressions that are too long, or have too many operators together."""
    count = 0
    for pattern in patterns:
        check_length(pattern, LONGEST_REGEX)
        count += operators(pattern)
    _check_operators(count)


def check_rules(outline: str) -> None:
    """Raise ValueError for a Lark grammar that is too large. `outline` is the grammar with its strings and schemas emptied.

    A terminal is one regular expression, with those of the terminals that it names in their places.
    """
    if len(outline) > LONGEST_RULES:
        raise ValueError(f"must have at most {LONGEST_RULES} characters beside its texts and schemas, has {len(outline)}")
    if _REGEX.sub("", outline).count("&") > INTERSECTIONS:
        raise ValueError(f"must have at most {INTERSECTIONS} operators &")
    found = list(_RULE.finditer(outline))
    if len(found) > RULES:
        raise ValueError(f"must have at most {RULES} rules")
    ends = [*(match.start() for match in found[1:]), len(outline)]
    bodies = {_WORD.match(match[1])[0]: outline[match.end() : end] for match, end in zip(found, ends, strict=True)}  # type: ignore[index]
    terminals = {name: body for name, body in bodies.items() if name.isupper()}
    sizes: dict[str, int] = {}

    def size(name: str) -> int:
        if name not in sizes:
            sizes[name] = 0  # of a terminal within itself, which llguidance refuses
            body = terminals[name]
            sizes[name] = operators(body) + sum(size(each) for each in _WORD.findall(body) if each in terminals)
        return sizes[name]

    _check_operators(sum(map(size, terminals)) + sum(operators(bodies[name]) for name in bodies.keys() - terminals.keys()))


def check_schemas(schemas: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError for schemas that are too large together."""
    patterns: list[str] = []
    n_names = 0
    for schema in schemas:
        for key in ("properties", "required"):
            names = schema.get(key)
            if isinstance(names, dict | list) and len(names) > NAMES:
                raise ValueError(f"{key}: at most {NAMES} names are possible, got {len(names)}")
        if isinstance(schema.get("pattern"), str):
            patterns.append(schema["pattern"])
        if isinstance(by_pattern := schema.get("patternProperties"), dict):
            patterns += by_pattern
            n_names += len(by_pattern)
    if n_names > NAME_PATTERNS:
        raise ValueError(f"patternProperties: at most {NAME_PATTERNS} patterns are possible, got {n_names}")
    check_regex(patterns)


def check_copies(root: dict[str, Any], resolve: Callable[[str], Any]) -> None:
    """Raise ValueError where parts of allOf, put together, become too many schemas; `resolve` finds what a $ref leads to."""
    sizes: dict[int, int] = {}
    todo = [root]
    while todo:  # depth first, without recursion: schemas may be nested thousands deep
        schema = todo[-1]
        parts = [part for part in _parts(schema, resolve) if isinstance(part, dict)]
        new = [part for part in parts if id(part) not in sizes]
        if id(schema) not in sizes:
            sizes[id(schema)] = 1  # of a schema within itself
            todo += new
        else:
            todo.pop()
            sizes[id(schema)] = size = 1 + sum(sizes[id(part)] for part in parts)
            if size > COPIES:
                raise ValueError(f"allOf: its parts, with what their $ref lead to, are more than {COPIES} schemas")


def _parts(schema: dict[str, Any], resolve: Callable[[str], Any]) -> list[Any]:
    """Return the schemas that describe the same value as this one."""
    found = schema["allOf"] if isinstance(schema.get("allOf"), list) else []
    return [*found, resolve(schema["$ref"])] if isinstance(schema.get("$ref"), str) else found


def _check_operators(count: int) -> None:
    if count > OPERATORS:
        raise ValueError(
            f"is too complex: its regular expressions may have at most {OPERATORS} operators in all, with those of terminals "
            f"within terminals, and have {count}"
        )
