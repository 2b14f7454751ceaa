from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher

from locallab.chat.json_schema import closed, relaxed
from locallab.chat.tools.format import Lark, Tool

TEXT = {"type": "string"}
SHUT = {"additionalProperties": False}

CLOSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "named": ({"properties": {"a": TEXT}}, {"properties": {"a": TEXT}, **SHUT}),
    "a free object": ({"type": "object"}, {"type": "object"}),
    "open": (
        {"properties": {"a": TEXT}, "additionalProperties": TEXT},
        {"properties": {"a": TEXT}, "additionalProperties": TEXT},
    ),
    "within": (
        {"properties": {"a": {"items": {"properties": {"b": TEXT}}}}},
        {"properties": {"a": {"items": {"properties": {"b": TEXT}, **SHUT}}}, **SHUT},
    ),
    "a free object within": ({"properties": {"a": {"properties": {}}}}, {"properties": {"a": {"properties": {}}}, **SHUT}),
    "one that is required and not named": (
        {"properties": {"a": TEXT}, "required": ["b"]},
        {"properties": {"a": TEXT}, "required": ["b"]},
    ),
    "or": (
        {"properties": {"a": {"anyOf": [{"properties": {"b": TEXT}}, {"type": "null"}]}}},
        {"properties": {"a": {"anyOf": [{"properties": {"b": TEXT}, **SHUT}, {"type": "null"}]}}, **SHUT},
    ),
    "defined": (
        {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"properties": {"b": TEXT}}}},
        {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"properties": {"b": TEXT}, **SHUT}}, **SHUT},
    ),
    "put together": (
        {"properties": {"a": TEXT}, "allOf": [{"properties": {"b": TEXT}}]},
        {"properties": {"a": TEXT}, "allOf": [{"properties": {"b": TEXT}}]},
    ),
    "put together from definitions": (
        {"allOf": [{"$ref": "#/$defs/x"}, {"properties": {"b": TEXT}}], "$defs": {"x": {"properties": {"a": TEXT}}}},
        {"allOf": [{"$ref": "#/$defs/x"}, {"properties": {"b": TEXT}}], "$defs": {"x": {"properties": {"a": TEXT}}}},
    ),
    "a keyword that may turn it round": (
        {"properties": {"a": TEXT, "b": {"not": {"properties": {"c": TEXT}}}}},
        {"properties": {"a": TEXT, "b": {"not": {"properties": {"c": TEXT}}}}},
    ),
    "alternatives of a part": (
        {"properties": {"a": TEXT}, "anyOf": [{"properties": {"b": TEXT}, "required": ["b"]}, {"required": ["a"]}]},
        {"properties": {"a": TEXT}, "anyOf": [{"properties": {"b": TEXT}, "required": ["b"]}, {"required": ["a"]}]},
    ),
}


@pytest.mark.parametrize(("schema", "expected"), CLOSED.values(), ids=CLOSED)
def test_closed(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert closed(schema) == expected
    assert closed(expected) == expected


NEAR = {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]}
PLACE = {"type": "object", "properties": {"x": {"type": "integer"}}}
NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {"city": TEXT, "near": NEAR},
    "required": ["city"],
    "$defs": {"place": PLACE},
}

places = st.fixed_dictionaries({}, optional={"x": st.integers(), "y": st.integers()})
values = st.fixed_dictionaries(
    {"city": st.text(max_size=2)}, optional={"near": st.none() | places, "type": st.just("object"), "x": st.none()}
)


@given(values)
def test_what_is_allowed_is_what_is_named(value: dict[str, Any]) -> None:
    jsonschema.validate(value, NESTED)
    named = value.keys() <= {"city", "near"} and (value.get("near") or {}).keys() <= {"x"}
    assert jsonschema.Draft202012Validator(closed(NESTED)).is_valid(value) == named


@pytest.mark.parametrize(
    ("tool", "accepted", "refused"),
    [
        (Tool("f", parameters=NESTED), {"city": "Oslo", "near": {"x": 1}}, {"city": "Oslo", "type": "object"}),
        (Tool("f"), {}, {"a": 1}),
        (Tool("f", strict=True), {}, {"a": 1}),
        (Tool("f", parameters={"type": "object", "properties": {}}), {}, {"a": 1}),
        (Tool("f", parameters={"type": "object"}), {"a": 1}, [1]),
        (Tool("f", parameters={"properties": {"a": TEXT}}, strict=True), {"a": "x", "b": 1}, {"a": 1}),
    ],
    ids=["named", "no parameters", "no parameters, strict", "none named", "a free object", "strict: to the letter"],
)
def test_arguments(tool: Tool, accepted: Any, refused: Any) -> None:
    schema = json.loads(Lark({}).arguments(tool).removeprefix("%json "))
    assert not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(accepted)
    assert not validator.is_valid(refused)


@pytest.mark.parametrize(
    "schema",
    [True, {"anyOf": 1}, {"allOf": "x"}, {"properties": [], "required": 1}, {"properties": {"a": 1}, "required": [[], "b"]}],
    ids=str,
)
def test_what_is_no_schema_stays_as_it_is(schema: Any) -> None:
    assert closed(schema) == schema


def test_a_schema_too_deep_to_look_through() -> None:
    deep: Any = TEXT
    for _ in range(5000):
        deep = {"properties": {"a": deep}}
    assert closed(deep) is deep


RELAXED: dict[str, tuple[Any, Any]] = {
    "plain": ({"type": "object", "required": ["a"]}, {"type": "object", "required": ["a"]}),
    "unknown format": ({"type": "string", "format": "weird"}, {"type": "string"}),
    "known format": ({"type": "string", "format": "uuid"}, {"type": "string", "format": "uuid"}),
    "unique items": ({"type": "array", "uniqueItems": True, "items": {"not": {}}}, {"type": "array", "items": {}}),
    "look-ahead": ({"type": "string", "pattern": "^(?!x)"}, {"type": "string"}),
    "pattern": ({"type": "string", "pattern": "^a+$"}, {"type": "string", "pattern": "^a+$"}),
    "one of": ({"oneOf": [{"type": "string"}, {"const": 1}]}, {"anyOf": [{"type": "string"}, {"const": 1}]}),
    "nested": (
        {"properties": {"a": {"minProperties": 2}, "not": {"type": "null"}}, "$defs": {"x": {"if": {}}}},
        {"properties": {"a": {}, "not": {"type": "null"}}, "$defs": {"x": {}}},
    ),
    "true": (True, True),
}


@pytest.mark.parametrize(("schema", "expected"), RELAXED.values(), ids=RELAXED)
def test_relaxed(schema: Any, expected: Any) -> None:
    assert relaxed(schema) == expected
    assert not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(relaxed(schema)))


RELAXED_SCHEMA: Any = {
    "type": "object",
    "properties": {
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "uniqueItems": True, "maxItems": 3},
        "size": {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"enum": ["small", "large"]}]},
        "host": {"type": "string", "pattern": "^[a-z]{0,3}$"},
    },
    "required": ["tags"],
    "minProperties": 2,
}


allowed_values = st.fixed_dictionaries(
    {"tags": st.lists(st.text(max_size=3), unique=True, max_size=3), "host": st.from_regex("[a-z]{0,3}", fullmatch=True)},
    optional={"size": st.integers(0, 9) | st.sampled_from(["small", "large"])},
)


@given(allowed_values)
def test_whatever_the_schema_allows_is_still_allowed(value: dict[str, Any]) -> None:
    jsonschema.validate(value, RELAXED_SCHEMA)
    jsonschema.validate(value, relaxed(RELAXED_SCHEMA))
