"""Constraints on the answer, in the forms that clients of several dialects send."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from locallab.chat.json_schema import closed
from locallab.engine.grammar.bounds import LONGEST
from locallab.engine.request import Constraint
from locallab.errors import InvalidField
from locallab.server.fields.sampling import Sampling

SCHEMA = {"type": ["object", "boolean"]}
ANY_SCHEMA = {"type": ["object", "boolean", "null"]}
NESTED = {"type": "object", "properties": {"schema": SCHEMA}, "required": ["schema"]}
WITH_SCHEMA = {"type": {"enum": ["json_schema"]}}
FORMATS = {
    "anyOf": [
        {"type": "null"},
        {"type": "object", "properties": {"type": {"enum": ["text", None]}}},
        {"type": "object", "properties": {"type": {"enum": ["json_object"]}, "schema": ANY_SCHEMA}, "required": ["type"]},
        {"type": "object", "properties": {**WITH_SCHEMA, "json_schema": NESTED}, "required": ["type", "json_schema"]},
        {"type": "object", "properties": {**WITH_SCHEMA, "schema": SCHEMA}, "required": ["type", "schema"]},
    ]
}


class Structured(Sampling, kw_only=True):
    """Fields that constrain the answer; at most one of them may be set."""

    response_format: Annotated[
        Any, Meta(description="text, json_object, or json_schema with the schema", extra_json_schema=FORMATS)
    ] = None
    grammar: Annotated[
        str | None, Meta(description="a grammar in GBNF, or in Lark if it begins with %llguidance or defines start")
    ] = None
    regex: Annotated[str | None, Meta(description="a regular expression that the whole answer must match")] = None
    choice: Annotated[
        list[str] | None, Meta(description="strings of which the answer is one", extra_json_schema={"minItems": 1})
    ] = None

    def constraint(self) -> Constraint | None:
        """Return the constraint, if any. Raises InvalidField for an invalid one, or for two of them."""
        if self.choice == []:
            raise InvalidField("choice", "is empty")
        found = [
            each
            for each in (
                read_format(self.response_format),
                grammar_of(self.grammar),
                Constraint("regex", self.regex, "regex") if self.regex else None,
                None if self.choice is None else Constraint("choice", json.dumps(self.choice), "choice"),
            )
            if each is not None
        ]
        if len(found) > 1:
            raise InvalidField(found[1].field, f"cannot be combined with {found[0].field}")
        return found[0] if found else None


def read_format(raw: object, field: str = "response_format") -> Constraint | None:
    """Read OpenAI's `response_format`; the schema may also be beside the type, as in Responses. Raises InvalidField."""
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise InvalidField(field, "expected an object with a type")
    match raw.get("type"):
        case "text" | None:
            return None
        case "json_object":
            schema = raw.get("schema")
            return Constraint("json_object", "", field) if schema is None else schema_of(schema, f"{field}.schema")
        case "json_schema":
            nested = raw.get("json_schema")
            if isinstance(nested, Mapping):
                return schema_of(nested.get("schema"), f"{field}.json_schema.schema")
            return schema_of(raw.get("schema"), f"{field}.schema")
        case kind:
            raise InvalidField(f"{field}.type", f"unknown type {kind!r}; known: text, json_object, json_schema")


def schema_of(raw: object, field: str) -> Constraint:
    """Constrain the answer to this schema, without properties it does not name. Raises InvalidField."""
    if not isinstance(raw, Mapping | bool):
        raise InvalidField(field, "is missing" if raw is None else "expected a JSON schema")
    if (length := len(msgspec.json.encode(raw))) > LONGEST:  # before all the work on it
        raise InvalidField(field, f"must have at most {LONGEST} characters, has {length}")
    return Constraint("json_schema", json.dumps(closed(raw)), field)


def grammar_of(source: str | None, field: str = "grammar") -> Constraint | None:
    """Tell Lark from GBNF by its beginning."""
    if not source:
        return None
    is_lark = source.lstrip().startswith("%llguidance") or any(line.startswith("start:") for line in source.splitlines())
    return Constraint("lark" if is_lark else "gbnf", source, field)
