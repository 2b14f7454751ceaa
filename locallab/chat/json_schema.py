"""Schema rewriting for tools and formats, before a grammar is made of them.

`closed` forbids properties that an object does not name, where the schema leaves that open: small models invent some without
end, and programs that read the answer take none. `relaxed` keeps the part that a grammar can enforce.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

OPEN = {"additionalProperties", "patternProperties", "anyOf", "allOf", "$ref", "enum", "const"}
"""Keywords beside which `properties` are not all there is to say."""

ONE = ("items", "additionalItems", "additionalProperties")
MANY = ("prefixItems",)
NAMED = ("properties", "patternProperties")
DEFINITIONS = ("$defs", "definitions")
"""Keywords that hold a schema, a list of them, and schemas by name."""

KNOWN = {
    *{*OPEN, *ONE, *MANY, *NAMED, *DEFINITIONS, "type", "required", "title", "description", "default", "examples", "format"},
    *{"pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    *{"minItems", "maxItems", "$id", "$schema", "$anchor"},
}
"""Keywords beside which closing an object only takes from what is allowed; of others, such as `not`, that is not known."""


def closed(schema: Any) -> Any:
    """The schema, with no properties allowed beyond those that its objects name, where it leaves that open. What the closed one
    allows the whole one allows too; one of which that is not certain, and parts that make one object together, stay as they
    are."""
    try:
        every = list(_every(schema))
        if any(each.keys() - KNOWN for each in every):
            return schema
        return _closed(schema, not any(map(_is_composed, every)))
    except RecursionError:
        return schema


def _closed(schema: Any, sound: bool) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    for key in (*NAMED, *(DEFINITIONS if sound else ())):
        if isinstance(made.get(key), Mapping):
            made[key] = {name: _closed(each, sound) for name, each in made[key].items()}
    for key in (*MANY, *(() if _is_composed(schema) else ("anyOf", "allOf"))):
        if isinstance(made.get(key), list):
            made[key] = [_closed(each, sound) for each in made[key]]
    for key in ONE:
        if key in made:
            made[key] = _closed(made[key], sound)
    if not OPEN & made.keys() and _names_all(made):
        made["additionalProperties"] = False
    return made


def _names_all(schema: Mapping[str, Any]) -> bool:
    """Whether it names properties, and all that are required."""
    named, required = schema.get("properties"), schema.get("required")
    return (
        isinstance(named, Mapping) and bool(named) and all(name in named for name in _list(required) if isinstance(name, str))
    )


def _is_composed(schema: Mapping[str, Any]) -> bool:
    """Whether several schemas describe one object: closing one of them would forbid what another names."""
    parts = ("anyOf" in schema) + ("$ref" in schema) + len(_list(schema.get("allOf")))
    return parts > 1 or (parts == 1 and bool({"properties", "required", "additionalProperties"} & schema.keys()))


def _every(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and all within it."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for key in (*NAMED, *DEFINITIONS):
        if isinstance(schema.get(key), Mapping):
            for each in schema[key].values():
                yield from _every(each)
    for key in (*MANY, "anyOf", "allOf"):
        for each in _list(schema.get(key)):
            yield from _every(each)
    for key in ONE:
        yield from _every(schema.get(key))


def _list(value: Any) -> list[Any]:
    """A list, or an empty one in place of what is none: whether the schema is one at all is the engine's business."""
    return value if isinstance(value, list) else []


ENFORCED = {
    "type",
    "enum",
    "const",
    "required",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minItems",
    "maxItems",
    "$ref",
    "$id",
    "$schema",
    "$anchor",
    "title",
    "description",
    "default",
    "examples",
}
"""Keywords that are taken as they stand."""


FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}

_LOOKING_AROUND = re.compile(r"\(\?[=!<]|\\[bB1-9]")


def relaxed(schema: Any) -> Any:
    """The schema without what a grammar cannot enforce; what is left out makes it wider, never narrower."""
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "required" and not isinstance(value, list):
            continue  # of draft 3, where a property says so itself
        if key in ENFORCED or (key == "format" and value in FORMATS) or (key == "pattern" and _is_regular(value)):
            kept[key] = value
        elif key in ONE:
            kept[key] = relaxed(value)
        elif key in (*MANY, "anyOf", "allOf") and isinstance(value, list):
            kept[key] = [relaxed(each) for each in value]
        elif key in (*NAMED, *DEFINITIONS) and isinstance(value, Mapping):
            kept[key] = {name: relaxed(each) for name, each in value.items()}
        elif key == "oneOf" and isinstance(value, list) and "anyOf" not in schema:
            kept["anyOf"] = [relaxed(each) for each in value]
    return kept


def _is_regular(pattern: object) -> bool:
    return isinstance(pattern, str) and not _LOOKING_AROUND.search(pattern)
