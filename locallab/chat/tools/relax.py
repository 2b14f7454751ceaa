"""The part of a JSON schema that a grammar can enforce, for tools that do not ask for all of it (`strict`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PLAIN = {
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

ONE = {"items", "additionalProperties", "additionalItems"}
MANY = {"anyOf", "allOf", "prefixItems"}
NAMED = {"properties", "patternProperties", "$defs", "definitions"}
"""Keywords that hold a schema, a list of them, and schemas by name."""

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
        if key in PLAIN or (key == "format" and value in FORMATS) or (key == "pattern" and _is_regular(value)):
            kept[key] = value
        elif key in ONE:
            kept[key] = relaxed(value)
        elif key in MANY and isinstance(value, list):
            kept[key] = [relaxed(each) for each in value]
        elif key in NAMED and isinstance(value, Mapping):
            kept[key] = {name: relaxed(each) for name, each in value.items()}
        elif key == "oneOf" and isinstance(value, list) and "anyOf" not in schema:
            kept["anyOf"] = [relaxed(each) for each in value]
    return kept


def _is_regular(pattern: object) -> bool:
    return isinstance(pattern, str) and not _LOOKING_AROUND.search(pattern)
