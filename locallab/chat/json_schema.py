"""Rewriting of JSON schemas before a grammar is compiled from them.

`closed` forbids properties that an object does not name where the schema leaves that open: small models invent properties
endlessly, and programs that read the answer expect none. `relaxed` keeps the part that a grammar can enforce.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

OPEN = {"additionalProperties", "patternProperties", "anyOf", "allOf", "$ref", "enum", "const"}
"""Keywords that allow an object more than its `properties`, or describe it further."""

ONE = ("items", "additionalItems", "additionalProperties")
MANY = ("prefixItems",)
NAMED = ("properties", "patternProperties")
DEFINITIONS = ("$defs", "definitions")
"""Keywords that hold one schema, a list of schemas, or schemas by name."""

KNOWN = {
    *{*OPEN, *ONE, *MANY, *NAMED, *DEFINITIONS, "type", "required", "title", "description", "default", "examples", "format"},
    *{"pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    *{"minItems", "maxItems", "$id", "$schema", "$anchor"},
}
"""Keywords beside which closing an object only narrows a schema; others, such as `not`, may turn that round."""


def closed(schema: Any) -> Any:
    """Return the schema with unnamed properties forbidden in its objects, where it leaves that open.

    The result allows nothing that the schema does not allow. A schema for which that is not certain is returned unchanged, and
    so are parts that describe one object together.
    """
    try:
        schemas = list(_subschemas(schema))
        if any(each.keys() - KNOWN for each in schemas):
            return schema
        return _closed(schema, not any(map(_is_composed, schemas)))
    except RecursionError:
        return schema


def _closed(schema: Any, close_definitions: bool) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    result = dict(schema)
    for key in (*NAMED, *(DEFINITIONS if close_definitions else ())):
        if isinstance(result.get(key), Mapping):
            result[key] = {name: _closed(each, close_definitions) for name, each in result[key].items()}
    for key in (*MANY, *(() if _is_composed(schema) else ("anyOf", "allOf"))):
        if isinstance(result.get(key), list):
            result[key] = [_closed(each, close_definitions) for each in result[key]]
    for key in ONE:
        if key in result:
            result[key] = _closed(result[key], close_definitions)
    named, required = result.get("properties"), (name for name in _list(result.get("required")) if isinstance(name, str))
    if not OPEN & result.keys() and isinstance(named, Mapping) and named and all(name in named for name in required):
        result["additionalProperties"] = False
    return result


def _is_composed(schema: Mapping[str, Any]) -> bool:
    """Return whether several schemas describe one object: closing one of them would forbid what another names."""
    parts = ("anyOf" in schema) + ("$ref" in schema) + len(_list(schema.get("allOf")))
    return parts > 1 or (parts == 1 and bool({"properties", "required", "additionalProperties"} & schema.keys()))


def _subschemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the schema and all schemas within it."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for key in (*NAMED, *DEFINITIONS):
        if isinstance(schema.get(key), Mapping):
            for each in schema[key].values():
                yield from _subschemas(each)
    for key in (*MANY, "anyOf", "allOf"):
        for each in _list(schema.get(key)):
            yield from _subschemas(each)
    for key in ONE:
        yield from _subschemas(schema.get(key))


def _list(value: Any) -> list[Any]:
    """Return the value if it is a list, else an empty list: the engine validates schemas."""
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
"""Keywords that a grammar enforces, or that constrain nothing."""

FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}

_LOOKAROUND = re.compile(r"\(\?[=!<]|\\[bB1-9]")


def relaxed(schema: Any) -> Any:
    """Return the schema without what a grammar cannot enforce; omissions only widen it."""
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "required" and not isinstance(value, list):
            continue  # draft 3: a boolean in the property itself
        is_regular = key == "pattern" and isinstance(value, str) and not _LOOKAROUND.search(value)
        if key in ENFORCED or is_regular or (key == "format" and value in FORMATS):
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
