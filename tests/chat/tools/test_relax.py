from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher

from locallab.chat.tools.relax import relaxed

CASES: dict[str, tuple[Any, Any]] = {
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


@pytest.mark.parametrize(("schema", "expected"), CASES.values(), ids=CASES)
def test_relaxed(schema: Any, expected: Any) -> None:
    assert relaxed(schema) == expected
    assert not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(relaxed(schema)))


SCHEMA: Any = {
    "type": "object",
    "properties": {
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "uniqueItems": True, "maxItems": 3},
        "size": {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"enum": ["small", "large"]}]},
        "host": {"type": "string", "pattern": "^[a-z]{0,3}$"},
    },
    "required": ["tags"],
    "minProperties": 2,
}


values = st.fixed_dictionaries(
    {"tags": st.lists(st.text(max_size=3), unique=True, max_size=3), "host": st.from_regex("[a-z]{0,3}", fullmatch=True)},
    optional={"size": st.integers(0, 9) | st.sampled_from(["small", "large"])},
)


@given(values)
def test_whatever_the_schema_allows_is_still_allowed(value: dict[str, Any]) -> None:
    jsonschema.validate(value, SCHEMA)
    jsonschema.validate(value, relaxed(SCHEMA))
