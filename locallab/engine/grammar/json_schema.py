"""JSON schemas in a form that llguidance enforces in full: what it would misread is rewritten or refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from locallab.engine.grammar.bounds import check_copies, check_schemas
from locallab.engine.grammar.regex import is_unwritable, translate

_SCHEMAS = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SCHEMA = (
    *("items", "additionalItems", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)
"""Keywords whose values are schemas by name, lists of schemas, and single schemas."""
_SKIPPED = ("disallow", "divisibleBy", "extends", "propertyDependencies")
"""Keywords of other drafts, which llguidance ignores as annotations."""
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_OLD_DRAFT = re.compile(r"draft-0[3-7]\b")
_POINTER = re.compile(
    rf"(?:/(?:(?:{'|'.join(map(re.escape, _SCHEMAS))})/[^/]*|(?:{'|'.join(_SCHEMA_LISTS)})/[0-9]+|(?:{'|'.join(_SCHEMA)})))*"
)
_PERCENT = re.compile(r"(?:%[0-9a-fA-F]{2})+")
_FLOATS = 1 << 53
"""Floats, which llguidance computes with, represent every integer up to here."""
_INT64 = 1 << 63
_MANY = 1 << 31
"""A count that no answer reaches."""
_UINT32 = 1 << 32

# As in RFC 3339. llguidance's own formats ignore in which years there is a 29th of February and when a minute has 61 seconds.
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
_ENFORCED = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
"""Formats; any other is an annotation (JSON Schema 2020-12, validation, 7.2.1)."""

OVERLAP = "patternProperties: two of its patterns match the same name"


def parse(source: str, begin: int, *, whole: bool = False) -> tuple[dict[str, Any], int]:
    """Parse the JSON object at `begin` and return it with the index behind its end. Raises ValueError.

    With `whole`, nothing but white space may follow it.
    """
    try:
        schema, end = _DECODER.raw_decode(source, begin)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from None
    if whole and source[end:].strip():
        raise ValueError(f"is not valid JSON: more follows at character {end}")
    return schema, end


def _number(text: str) -> int | float:
    """Return a finite number of JSON. Raises ValueError for NaN, Infinity and a number out of range."""
    if text.lstrip("-").isdecimal():
        if len(text) > 300:
            raise ValueError("a number is out of range")
        return int(text)
    if text in ("NaN", "Infinity", "-Infinity"):
        raise ValueError(f"{text} is no number")
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:20]} is out of range")
    return number


_DECODER = json.JSONDecoder(parse_float=_number, parse_int=_number, parse_constant=_number)


def make_exact(schema: dict[str, Any]) -> str:
    """Rewrite `schema` (mutates) into one that llguidance enforces in full, and return its text.

    Raises ValueError with the keyword that cannot be enforced.
    """
    schemas = _subschemas(schema)
    check_schemas(schemas)
    check_copies(schema, lambda reference: next(_targets(reference, schema, schema), None))
    for each in schemas:
        _drop_what_says_nothing(each)
        _check(each)
        _normalize_counts(each)
        _normalize_bounds(each)
        _translate(each)
    _separate_bounds(schemas)
    _check_multiples(schemas)
    try:
        return json.dumps(schema)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _subschemas(root: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all schemas within `root`, itself included, and those that references lead to."""
    old = bool(_OLD_DRAFT.search(str(root.get("$schema"))))
    schemas: dict[int, dict[str, Any]] = {}
    todo: list[tuple[Any, dict[str, Any]]] = [(root, root)]
    referenced: list[tuple[Any, dict[str, Any]]] = []
    while todo or referenced:
        if not todo:  # only when every schema in a known place has been seen with its own base
            todo, referenced = referenced, []
        each, base = todo.pop()
        if not isinstance(each, dict) or id(each) in schemas:
            continue
        schemas[id(each)] = each
        identified = isinstance(each.get("$id", each.get("id")), str)
        base = each if identified else base
        todo += [(part, base) for key in _SCHEMAS if isinstance(each.get(key), dict) for part in each[key].values()]
        todo += [(part, base) for key in _SCHEMA_LISTS if isinstance(each.get(key), list) for part in each[key]]
        todo += [(each.get(key), base) for key in _SCHEMA]
        reference = each.get("$ref")
        if isinstance(reference, str):
            if old and identified and each is not root:
                raise ValueError("$ref beside $id cannot be enforced: in this draft it hides the other")
            referenced += [(target, base) for target in _targets(reference, root, base)]
    return list(schemas.values())


def _targets(reference: str, root: Any, base: Any) -> Iterator[Any]:
    """Yield the values that a JSON pointer (RFC 6901) leads to from the root and from the base, None where there is none.

    Raises ValueError for a pointer into another resource that leads to no known place of a schema.
    """
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


def _drop_what_says_nothing(schema: dict[str, Any]) -> None:
    """Remove (mutates) keywords that llguidance does not know, where every value meets them."""
    if isinstance(name := schema.get("format"), str) and name not in _ENFORCED:
        del schema["format"]
    if isinstance(anchor := schema.pop("$dynamicAnchor", None), str):  # without a $dynamicRef, which is refused
        schema.setdefault("$anchor", anchor)
    branches = [schema.get("then", True), schema.get("else", True)]
    met = {
        "propertyNames": _any_text(schema.get("propertyNames")),
        "not": schema.get("not") is False or schema.get("not") == {"not": {}},
        "uniqueItems": schema.get("uniqueItems") is False or schema.get("maxItems") in (0, 1),
        "unevaluatedItems": _anything(schema.get("unevaluatedItems")),
        "unevaluatedProperties": _anything(schema.get("unevaluatedProperties")),
        "contains": schema.get("minContains") == 0 and "maxContains" not in schema,
        "minContains": "contains" not in schema or (schema.get("minContains") == 0 and "maxContains" not in schema),
        "maxContains": "contains" not in schema,
        "dependentRequired": _each(schema.get("dependentRequired"), lambda names: names == []),
        "dependentSchemas": _each(schema.get("dependentSchemas"), _anything),
        "dependencies": _each(schema.get("dependencies"), lambda value: value == [] or _anything(value)),
        "if": all(map(_anything, branches)),
        "then": "if" not in schema or all(map(_anything, branches)),
        "else": "if" not in schema or all(map(_anything, branches)),
        "$recursiveAnchor": True,
    }
    for key in [key for key, always in met.items() if always and key in schema]:
        del schema[key]


def _anything(schema: Any) -> bool:
    return schema is True or schema == {}


def _any_text(schema: Any) -> bool:
    """Return whether every text meets a schema: it says no more than that it is one."""
    if not isinstance(schema, dict):
        return schema is True
    kind = schema.get("type", "string")
    asserting = schema.keys() - _ANNOTATIONS - {"type"}
    return (kind == "string" or (isinstance(kind, list) and "string" in kind)) and not asserting


def _each(values: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(values, dict) and all(map(holds, values.values()))


def _check(schema: dict[str, Any]) -> None:
    """Raise ValueError for keywords and values that llguidance accepts but does not enforce in full."""
    for key in _SKIPPED:
        if key in schema:
            raise ValueError(f'uses "{key}", which cannot be enforced')
    if not isinstance(schema.get("required", []), list):
        raise ValueError("required must be a list of names")
    for key in ("enum", "type"):
        if schema.get(key) == []:
            raise ValueError(f"{key} is empty: nothing meets it")
    for key in ("const", "enum"):  # llguidance would leave characters out, or round
        todo = [schema.get(key)]
        while todo:
            each = todo.pop()
            if isinstance(each, str) and any(map(is_unwritable, map(ord, each))):
                raise ValueError(f"{key} cannot be met: no text matches a control character without a short escape in JSON")
            if isinstance(each, int) and float(each) != each:
                raise ValueError(f"{key} cannot be enforced: the number {each} has too many digits")
            todo += each if isinstance(each, list) else each.values() if isinstance(each, dict) else []


def _normalize_counts(schema: dict[str, Any]) -> None:
    """Make counts integers (mutates), and drop maximums too large for llguidance: no answer is so long.

    Raises ValueError for a minimum that cannot be enforced.
    """
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
    names = {name for name in schema.get("required", []) if isinstance(name, str)}
    if isinstance(count, int) and count > max(1, len(names)):
        raise ValueError("minProperties above 1 cannot be enforced; name the properties in required instead")


def _normalize_bounds(schema: dict[str, Any]) -> None:
    """Replace the boolean exclusive bounds of draft 4 (mutates) by the numbers of later drafts.

    Raises ValueError for a bound that numbers rounded to floats and 64 bits could exceed.
    """
    for key, other in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(key), bool):
            exclusive = schema.pop(key)
            if exclusive and other in schema:
                schema[key] = schema.pop(other)
        sign, most = (1, _INT64 - 1) if other == "maximum" else (-1, _INT64)
        for bound, inclusive in ((schema.get(other), True), (schema.get(key), False)):
            if isinstance(bound, int | float) and abs(bound) >= _FLOATS:
                upper = sign * bound
                exact = (upper >= most or float(upper) <= upper) if inclusive else upper > most
                if upper <= -_INT64 or not exact:
                    raise ValueError(f"{other if inclusive else key} has too many digits to be enforced")


def _separate_bounds(schemas: list[dict[str, Any]]) -> None:
    """Move exclusive bounds by the least amount (mutates) where another bound is less than 1 away.

    llguidance would let an integer pass there that lies beyond the bound.
    """
    bounds = [schema[key] for schema in schemas for key in _BOUNDS if isinstance(schema.get(key), float)]
    fractions = {math.floor(bound) for bound in bounds if not bound.is_integer()}
    for schema in schemas:
        for key, direction, next_to in (("exclusiveMinimum", 1, 0), ("exclusiveMaximum", -1, 1)):
            bound = schema.get(key)
            if isinstance(bound, int | float) and direction * bound >= 0 and bound - next_to in fractions:
                schema[key] = bound + direction * max(1e-15, math.ulp(bound))


def _check_multiples(schemas: list[dict[str, Any]]) -> None:
    """Raise ValueError for multiples beyond the 32 bits in which llguidance combines those that apply to one number."""
    values = [schema.get("multipleOf") for schema in schemas]
    multiples = [Decimal(repr(each)) for each in values if isinstance(each, int | float) and not isinstance(each, bool)]
    if any(len(multiple.as_tuple().digits) > 10 for multiple in multiples):
        raise ValueError("multipleOf has too many digits to be enforced")
    if any(multiple <= 0 for multiple in multiples):
        raise ValueError("multipleOf must be above 0")
    places = max((-min(0, int(multiple.as_tuple().exponent)) for multiple in multiples), default=0)
    if places > 20 or any(multiple >= _UINT32 for multiple in multiples):
        raise ValueError("multipleOf has too many digits to be enforced")
    scaled = [int(multiple.scaleb(places)) for multiple in multiples]
    alone = len(set(scaled)) < 2 or not any(
        {"allOf", "anyOf", "oneOf", "$ref", "patternProperties"} & schema.keys() for schema in schemas
    )
    if not alone and math.lcm(*scaled) * max(scaled) >= _UINT32:
        raise ValueError("multipleOf has too many digits to be enforced together with the others")


def _translate(schema: dict[str, Any]) -> None:
    """Translate regular expressions and formats (mutates) to those that llguidance reads as they are meant."""
    if isinstance(schema.get("pattern"), str):
        schema["pattern"] = translate(schema["pattern"])
    by_pattern = schema.get("patternProperties")
    if isinstance(by_pattern, dict):
        schema["patternProperties"] = {translate(pattern): each for pattern, each in by_pattern.items()}
        if len(schema["patternProperties"]) < len(by_pattern):
            raise ValueError(OVERLAP)
    exact_format = _FORMATS.get(str(schema.get("format")))
    if exact_format and isinstance(schema.get("allOf", []), list):
        del schema["format"]
        schema["allOf"] = [*schema.get("allOf", []), exact_format]
