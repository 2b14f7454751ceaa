"""Constraints on the answer, in the forms that clients of several dialects send."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from locallab.chat.json_schema import closed
from locallab.engine.grammar.bounds import LONGEST
from locallab.engine.request import Constraint
from locallab.errors import InvalidField
from locallab.server.fields.sampling import Sampling
from locallab.server.fields.table import Others, alias, refused, unused

SCHEMA = {"type": ["object", "boolean"]}
ANY_SCHEMA = {"type": ["object", "boolean", "null"]}
TEXT_OR_SCHEMA = {"anyOf": [ANY_SCHEMA, {"type": "string", "contentMediaType": "application/schema+json"}]}
AROUND = ("name", "strict", "description")
"""Fields beside a schema; an object that has others, and no schema, is the schema itself."""

NESTED = {
    "type": "object",
    "anyOf": [
        {"properties": {"schema": SCHEMA}, "required": ["schema"]},
        {"not": {"anyOf": [{"required": ["schema"]}, {"propertyNames": {"enum": [*AROUND]}}]}},
    ],
}
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


class StructuredOutputs(msgspec.Struct, kw_only=True):
    """vLLM's object of constraints; at most one of them may be set."""

    json: Annotated[Any, Meta(description="a JSON schema, also as text", extra_json_schema=TEXT_OR_SCHEMA)] = None
    json_object: Annotated[bool | None, Meta(description="true: any JSON object")] = None
    regex: Annotated[str | None, Meta(description="a regular expression")] = None
    choice: Annotated[
        list[str] | None, Meta(description="strings of which the answer is one", extra_json_schema={"minItems": 1})
    ] = None
    grammar: Annotated[str | None, Meta(description="a grammar in GBNF or Lark")] = None

    OTHERS: ClassVar[Others] = {
        "structural_tag": refused("use json, regex, choice or grammar; tools and tool_choice constrain calls"),
        "whitespace_pattern": refused("describe the answer with regex or grammar"),
        "disable_any_whitespace": refused("describe the answer with regex or grammar"),
        "disable_additional_properties": unused("objects have only the properties that their schema names, if it names any"),
        "disable_fallback": unused("there is one engine for all grammars"),
    }


class Structured(Sampling, kw_only=True):
    """Fields that constrain the answer; at most one constraint may be set, in whatever spellings."""

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
    json_schema: Annotated[
        Any, Meta(description="a JSON schema that the answer must match, also as text", extra_json_schema=TEXT_OR_SCHEMA)
    ] = None
    structured_outputs: Annotated[StructuredOutputs | None, Meta(description="the same constraints in an object")] = None
    guided_json: Annotated[Any, alias("json_schema", extra_json_schema=TEXT_OR_SCHEMA)] = None
    guided_json_object: Annotated[bool | None, alias("structured_outputs.json_object")] = None
    guided_regex: Annotated[str | None, alias("regex")] = None
    guided_choice: Annotated[list[str] | None, alias("choice", extra_json_schema={"minItems": 1})] = None
    guided_grammar: Annotated[str | None, alias("grammar")] = None
    ebnf: Annotated[str | None, alias("grammar")] = None

    OTHERS: ClassVar[Others] = {
        **Sampling.OTHERS,
        "guided_decoding_backend": unused("there is one engine for all grammars"),
        "guided_whitespace_pattern": refused("describe the answer with regex or grammar"),
        "structural_tag": StructuredOutputs.OTHERS["structural_tag"],
        "grammar_lazy": refused("a grammar holds from the beginning; tools and tool_choice constrain calls"),
        "grammar_triggers": refused("a grammar holds from the beginning"),
        "grammar_type": unused("a grammar's language is told by its text"),
        "preserved_tokens": unused("tools and reasoning say which control tokens have text"),
    }

    def constraint(self, *more: Constraint | None) -> Constraint | None:
        """Return the constraint, if any, of these fields and of `more`. Raises InvalidField for an invalid one, or for two."""
        each = [*more, read_format(self.response_format), *(reader(self._value(field), field) for field, reader in READERS)]
        found = list({(one.kind, one.source): one for one in each if one is not None}.values())
        if len(found) > 1:
            raise InvalidField(found[1].field, f"cannot be combined with {found[0].field}")
        return found[0] if found else None

    def _value(self, field: str) -> Any:
        holder, _, name = field.rpartition(".")
        return getattr(getattr(self, holder) if holder else self, name, None)


def constraints_refused(instead: str, *own: str) -> Others:
    """Return the fields of Structured as refused by a body that has constraints of another form; `own` are fields it has."""
    names = (name for name in Structured.__struct_fields__ if name not in (*Sampling.__struct_fields__, *own))
    return {name: refused(instead) for name in names}


def read_format(raw: object, field: str = "response_format") -> Constraint | None:
    """Read OpenAI's `response_format`; the schema may also be beside the type, as in Responses. Raises InvalidField."""
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise InvalidField(field, "expected an object with a type")
    nested, kind = raw.get("json_schema"), raw.get("type")
    if kind is None and (nested is not None or "schema" in raw):
        kind = "json_schema"
    match kind:
        case "text" | None:
            return None
        case "json_object" if nested is None and raw.get("schema") is None:
            return Constraint("json_object", "", field)
        case "json_object" | "json_schema":
            if nested is None:
                return schema_of(raw.get("schema"), f"{field}.schema")
            if not isinstance(nested, Mapping):
                raise InvalidField(f"{field}.json_schema", "expected an object with a schema")
            if "schema" in nested or not nested.keys() - set(AROUND):
                return schema_of(nested.get("schema"), f"{field}.json_schema.schema")
            return schema_of(nested, f"{field}.json_schema")  # the schema without a name around it
        case kind:
            raise InvalidField(f"{field}.type", f"unknown type {kind!r}; known: text, json_object, json_schema")


def schema_of(raw: object, field: str) -> Constraint:
    """Constrain the answer to this schema, without properties it does not name. Raises InvalidField."""
    if not isinstance(raw, Mapping | bool):
        raise InvalidField(field, "is missing" if raw is None else "expected a JSON schema")
    if (length := len(msgspec.json.encode(raw))) > LONGEST:  # before all the work on it
        raise InvalidField(field, f"must have at most {LONGEST} characters, has {length}")
    return Constraint("json_schema", json.dumps(closed(raw)), field)


def text_or_schema(raw: object, field: str) -> Constraint | None:
    """As `schema_of`, of a schema that may be written as text. Raises InvalidField."""
    if raw is None or raw == "":
        return None
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError):
            raise InvalidField(field, "expected a JSON schema, got a text that is not JSON") from None
    return schema_of(raw, field)


def grammar_of(source: str | None, field: str = "grammar") -> Constraint | None:
    """Tell Lark from GBNF by its beginning."""
    if not source:
        return None
    is_lark = source.lstrip().startswith("%llguidance") or any(line.startswith("start:") for line in source.splitlines())
    return Constraint("lark" if is_lark else "gbnf", source, field)


def _regex(source: str | None, field: str) -> Constraint | None:
    return Constraint("regex", source, field) if source else None


def _choice(choices: list[str] | None, field: str) -> Constraint | None:
    if choices == []:
        raise InvalidField(field, "is empty")
    return None if choices is None else Constraint("choice", json.dumps(choices), field)


def _object(wanted: bool | None, field: str) -> Constraint | None:
    return Constraint("json_object", "", field) if wanted else None


READERS: Sequence[tuple[str, Callable[[Any, str], Constraint | None]]] = [
    *((name, grammar_of) for name in ("grammar", "guided_grammar", "ebnf", "structured_outputs.grammar")),
    *((name, _regex) for name in ("regex", "guided_regex", "structured_outputs.regex")),
    *((name, _choice) for name in ("choice", "guided_choice", "structured_outputs.choice")),
    *((name, text_or_schema) for name in ("json_schema", "guided_json", "structured_outputs.json")),
    *((name, _object) for name in ("guided_json_object", "structured_outputs.json_object")),
]
"""Each field with a constraint, and how it is read."""
