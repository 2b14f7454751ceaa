"""Objects that name their properties get no others: where a schema leaves that open, small models invent some without end, and
programs that read the answer take none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OPEN = {"additionalProperties", "patternProperties", "anyOf", "allOf", "$ref", "enum", "const"}
"""Keywords beside which `properties` are not all there is to say."""

ONE = ("items", "additionalItems", "additionalProperties")
MANY = ("prefixItems",)
NAMED = ("properties", "patternProperties")
DEFINITIONS = ("$defs", "definitions")


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
