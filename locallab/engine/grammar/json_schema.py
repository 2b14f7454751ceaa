"""JSON schemas as llguidance enforces them in full: what it would take for something else is put in other words, or refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from locallab.engine.grammar.regex import is_unwritable, translated

_SCHEMAS = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SCHEMA = (
    *("items", "additionalItems", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)
"""Keywords whose value is schemas by name, a list of schemas, and a schema."""
_SKIPPED = ("disallow", "divisibleBy", "extends", "propertyDependencies")
"""Keywords of other drafts that llguidance takes for annotations."""
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_OLD_DRAFT = re.compile(r"draft-0[3-7]\b")
_POINTER = re.compile(
    rf"(?:/(?:(?:{'|'.join(map(re.escape, _SCHEMAS))})/[^/]*|(?:{'|'.join(_SCHEMA_LISTS)})/[0-9]+|(?:{'|'.join(_SCHEMA)})))*"
)
_PERCENT = re.compile(r"(?:%[0-9a-fA-F]{2})+")
_FLOATS = 1 << 53
"""Up to here floats, which llguidance counts with, have every integer."""
_INT64 = 1 << 63
_MANY = 1 << 31
"""A count that no answer reaches."""
_UINT32 = 1 << 32

# As RFC 3339 has them. llguidance's own know neither which years have a 29th of February nor when a minute has 61 seconds.
_DATE = (
    r"(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
)
_HOUR = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR}:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+-]{_HOUR})"
_FORMATS: dict[str, dict[str, Any]] = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DATE}[tT]{_TIME}$"},
    "hostname": {"format": "hostname", "maxLength": 253},
}

OVERLAP = "patternProperties: two of its patterns match the same name"


def parsed(source: str, begin: int, *, whole: bool = False) -> tuple[dict[str, Any], int]:
    """The JSON object that begins there, and where it ends: with the source if that is to be it as a `whole`."""
    try:
        schema, end = _DECODER.raw_decode(source, begin)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from None
    if whole and source[end:].strip():
        raise ValueError(f"is not valid JSON: more follows at character {end}")
    return schema, end


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:20]} is out of range")
    return number


def _whole(text: str) -> int:
    if len(text) > 300:
        raise ValueError("a number is out of range")
    return int(text)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_int=_whole, parse_constant=_no_number)


def exact(schema: dict[str, Any]) -> str:
    """Mutates: `schema` becomes one that llguidance enforces in full, where it would take what is meant for something else.
    Returns its text. Raises ValueError with the keyword that cannot be enforced."""
    found = _subschemas(schema)
    for each in found:
        _check(each)
        _translate(each)
    _keep_bounds_apart(found)
    _check_multiples(found)
    try:
        return json.dumps(schema)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _subschemas(root: dict[str, Any]) -> list[dict[str, Any]]:
    """All schemas within the schema, itself included, and what its references lead to."""
    old = bool(_OLD_DRAFT.search(str(root.get("$schema"))))
    found: dict[int, dict[str, Any]] = {}
    todo: list[tuple[Any, dict[str, Any]]] = [(root, root)]
    led: list[tuple[Any, dict[str, Any]]] = []
    while todo or led:
        if not todo:  # only when every schema in a known place has been seen with its own base
            todo, led = led, []
        each, base = todo.pop()
        if not isinstance(each, dict) or id(each) in found:
            continue
        found[id(each)] = each
        identified = isinstance(each.get("$id", each.get("id")), str)
        base = each if identified else base
        todo += [(part, base) for part in _parts(each)]
        reference = each.get("$ref")
        if isinstance(reference, str):
            if old and identified and each is not root:
                raise ValueError("$ref beside $id cannot be enforced: in this draft it hides the other")
            led += [(target, base) for target in _targets(reference, root, base)]
    return list(found.values())


def _parts(schema: dict[str, Any]) -> Iterator[Any]:
    for key in _SCHEMAS:
        if isinstance(schema.get(key), dict):
            yield from schema[key].values()
    for key in _SCHEMA_LISTS:
        if isinstance(schema.get(key), list):
            yield from schema[key]
    for key in _SCHEMA:
        yield schema.get(key)


def _targets(reference: str, root: Any, base: Any) -> Iterator[Any]:
    """What a JSON pointer may lead to, wherever that is; only those into other resources have to lead to a known place."""
    address, _, pointer = reference.partition("#")
    if not pointer.startswith("/"):
        return
    if address and not _POINTER.fullmatch(pointer):
        raise ValueError(f"$ref: {reference[:100]} does not lead to a schema")
    for place in (root, base):
        for name in _PERCENT.sub(
            lambda each: bytes.fromhex(each[0].replace("%", "")).decode(errors="replace"), pointer[1:]
        ).split("/"):
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(place, list):
                place = place[int(name)] if name.isdecimal() and len(name) < 7 and int(name) < len(place) else None
            else:
                place = place.get(name) if isinstance(place, dict) else None
        yield place


def _check(schema: dict[str, Any]) -> None:
    """Raises ValueError for keywords that llguidance takes without a word and does not, or not in full, enforce."""
    for key in _SKIPPED:
        if key in schema:
            raise ValueError(f'uses "{key}", which cannot be enforced')
    required = schema.get("required", [])
    if not isinstance(required, list):
        raise ValueError("required must be a list of names")
    for key in ("enum", "type"):
        if schema.get(key) == []:
            raise ValueError(f"{key} is empty: nothing meets it")
    if schema.get("format") == "unknown":
        raise ValueError("cannot be enforced: Unknown format: unknown")
    for key in ("const", "enum"):
        if key in schema:
            _check_value(key, schema[key])
    _check_counts(schema, len({name for name in required if isinstance(name, str)}))
    _check_bounds(schema)


def _check_value(key: str, value: Any) -> None:
    """Raises ValueError where llguidance would leave characters out or round."""
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, str) and any(map(is_unwritable, map(ord, each))):
            raise ValueError(f"{key} cannot be met: no text matches a control character without a short escape in JSON")
        if isinstance(each, int) and float(each) != each:
            raise ValueError(f"{key} cannot be enforced: the number {each} has too many digits")
        todo += each if isinstance(each, list) else each.values() if isinstance(each, dict) else []


def _check_counts(schema: dict[str, Any], names: int) -> None:
    """Mutates: 2.0 is 2, and no answer is so long that it could be too long for a count that llguidance does not take."""
    for key in _COUNTS:
        count = schema.get(key)
        if isinstance(count, float) and count.is_integer():
            schema[key] = count = int(count)
        if isinstance(count, int) and count >= _MANY:
            if key.startswith("min"):
                raise ValueError(f"{key} is more than can be enforced")
            del schema[key]
    # llguidance counts properties, not their names, so that one name twice would do
    count = schema.get("minProperties")
    if isinstance(count, int) and count > max(1, names):
        raise ValueError("minProperties above 1 cannot be enforced; name the properties in required instead")


def _check_bounds(schema: dict[str, Any]) -> None:
    """Mutates: an exclusive bound is one by itself, as in all drafts but the fourth."""
    for key, other in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(key), bool):
            exclusive = schema.pop(key)
            if exclusive and other in schema:
                schema[key] = schema.pop(other)
        sign, most = (1, _INT64 - 1) if other == "maximum" else (-1, _INT64)
        for bound, inclusive in ((schema.get(other), True), (schema.get(key), False)):
            if isinstance(bound, int | float) and abs(bound) >= _FLOATS and not _is_safe(sign * bound, most, inclusive):
                raise ValueError(f"{other if inclusive else key} has too many digits to be enforced")


def _is_safe(bound: int | float, most: int, inclusive: bool) -> bool:
    """Whether numbers within the float nearest to this upper bound, and within 64 bits, are within the bound itself."""
    if bound <= -_INT64:
        return False
    return bound >= most or float(bound) <= bound if inclusive else bound > most


def _keep_bounds_apart(schemas: list[dict[str, Any]]) -> None:
    """Mutates: llguidance lets a whole number pass as farther from 0 than itself where the other bound is less than 1 away."""
    bounds = [schema[key] for schema in schemas for key in _BOUNDS if isinstance(schema.get(key), float)]
    fractions = {math.floor(bound) for bound in bounds if not bound.is_integer()}
    for schema in schemas:
        for key, direction, next_to in (("exclusiveMinimum", 1, 0), ("exclusiveMaximum", -1, 1)):
            bound = schema.get(key)
            if isinstance(bound, int | float) and direction * bound >= 0 and bound - next_to in fractions:
                schema[key] = bound + direction * max(1e-15, math.ulp(bound))


def _check_multiples(schemas: list[dict[str, Any]]) -> None:
    """llguidance's arithmetic on what several schemas together ask of one number has 32 bits."""
    multiples = [Decimal(repr(schema["multipleOf"])) for schema in schemas if _is_number(schema.get("multipleOf"))]
    if any(len(multiple.as_tuple().digits) > 10 for multiple in multiples):
        raise ValueError("multipleOf has too many digits to be enforced")
    if any(multiple <= 0 for multiple in multiples):
        raise ValueError("multipleOf must be above 0")
    places = max((-min(0, int(multiple.as_tuple().exponent)) for multiple in multiples), default=0)
    if places > 20 or any(multiple >= _UINT32 for multiple in multiples):
        raise ValueError("multipleOf has too many digits to be enforced")
    whole = [int(multiple.scaleb(places)) for multiple in multiples]
    alone = len(set(whole)) < 2 or not any(
        {"allOf", "anyOf", "oneOf", "$ref", "patternProperties"} & schema.keys() for schema in schemas
    )
    if not alone and math.lcm(*whole) * max(whole) >= _UINT32:
        raise ValueError("multipleOf has too many digits to be enforced together with the others")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _translate(schema: dict[str, Any]) -> None:
    """Mutates: regular expressions and formats become ones that llguidance reads as they are meant."""
    if isinstance(schema.get("pattern"), str):
        schema["pattern"] = translated(schema["pattern"])
    named = schema.get("patternProperties")
    if isinstance(named, dict):
        schema["patternProperties"] = {translated(pattern): each for pattern, each in named.items()}
        if len(schema["patternProperties"]) < len(named):
            raise ValueError(OVERLAP)
    meant = _FORMATS.get(str(schema.get("format")))
    if meant and isinstance(schema.get("allOf", []), list):
        del schema["format"]
        schema["allOf"] = [*schema.get("allOf", []), meant]
