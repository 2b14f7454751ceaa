"""Constraints in all their spellings, in every dialect that has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from locallab.errors import InvalidField
from locallab.server.fields.constraint import read_format
from tests.support.http_server import Served

MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GBNF = 'root ::= "a"'
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/generate": {"prompt": "hi"},
    "/chat": {"messages": MESSAGES},
    "/completion": {"prompt": "hi"},
}
SPELLINGS: dict[str, tuple[dict[str, Any], str]] = {
    "grammar": ({"grammar": GBNF}, "gbnf"),
    "guided_grammar": ({"guided_grammar": GBNF}, "gbnf"),
    "ebnf": ({"ebnf": GBNF}, "gbnf"),
    "in an object: grammar": ({"structured_outputs": {"grammar": GBNF}}, "gbnf"),
    "lark": ({"guided_grammar": 'start: "a"'}, "lark"),
    "regex": ({"regex": "a+"}, "regex"),
    "guided_regex": ({"guided_regex": "a+"}, "regex"),
    "in an object: regex": ({"structured_outputs": {"regex": "a+"}}, "regex"),
    "choice": ({"choice": ["a", "b"]}, "choice"),
    "guided_choice": ({"guided_choice": ["a", "b"]}, "choice"),
    "in an object: choice": ({"structured_outputs": {"choice": ["a", "b"]}}, "choice"),
    "json_schema": ({"json_schema": SCHEMA}, "json_schema"),
    "guided_json": ({"guided_json": SCHEMA}, "json_schema"),
    "as text": ({"guided_json": json.dumps(SCHEMA)}, "json_schema"),
    "in an object: json": ({"structured_outputs": {"json": SCHEMA}}, "json_schema"),
    "in an object: json as text": ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json_schema"),
    "in an object: json_object": ({"structured_outputs": {"json_object": True}}, "json_object"),
    "guided_json_object": ({"guided_json_object": True}, "json_object"),
    "format": ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, "json_schema"),
    "format without a name": ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, "json_schema"),
    "format without a type": ({"response_format": {"json_schema": {"schema": SCHEMA}}}, "json_schema"),
    "format with the schema": ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "json_schema"),
    "format of an object with a schema": ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "json_schema"),
    "format of an object": ({"response_format": {"type": "json_object"}}, "json_object"),
    "the same twice": ({"guided_json": SCHEMA, "json_schema": SCHEMA, "structured_outputs": {"json": SCHEMA}}, "json_schema"),
    "others off": ({"guided_json": SCHEMA, "guided_regex": None, "grammar": "", "structured_outputs": {}}, "json_schema"),
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling(served: Served, path: str, spelling: str) -> None:
    fields, kind = SPELLINGS[spelling]
    answer = served.http.post(path, json={**BODIES[path], **fields})
    assert answer.status_code == 200, answer.text
    [(_, params)] = served.engine.submitted
    assert params.constraint is not None and params.constraint.kind == kind
    if kind == "json_schema":
        assert json.loads(params.constraint.source)["properties"] == SCHEMA["properties"]
    assert "x-locallab-notes" not in answer.headers


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "two": ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice: cannot be combined with guided_regex"),
    "two in an object": (
        {"structured_outputs": {"regex": "a", "json": SCHEMA}},
        "structured_outputs.json: cannot be combined with structured_outputs.regex",
    ),
    "no choices": ({"guided_choice": []}, "guided_choice: is empty"),
    "no JSON": ({"guided_json": "{"}, "guided_json: expected a JSON schema"),
    "no schema": ({"structured_outputs": {"json": 5}}, "structured_outputs.json: expected a JSON schema"),
    "tag": ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag: is not supported: use json"),
    "spaces": ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern: is not supported"),
    "a choice that is none": ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice: expected array"),
    "format of another type": ({"response_format": {"type": "structural_tag"}}, "response_format.type: unknown type"),
    "format without a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema: is missing",
    ),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_constraint(served: Served, fields: dict[str, Any], message: str) -> None:
    answer = served.http.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(message), answer.text
    assert served.engine.submitted == []


def test_two_forms_of_responses_do_not_go_together(served: Served) -> None:
    body = {"input": "hi", "text": {"format": {"type": "json_object"}}, "guided_regex": "a"}
    error = served.http.post("/v1/responses", json=body).json()["error"]
    assert error["message"].startswith("guided_regex: cannot be combined with text.format")


@pytest.mark.parametrize(
    ("path", "body", "instead"),
    [
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 8}, "output_format"),
        ("/api/chat", {"messages": MESSAGES}, "use format"),
        ("/api/generate", {"prompt": "hi"}, "use format"),
        ("/api/v1/assistant/chat", {"prompt": "hi"}, "format json"),
    ],
)
def test_where_constraints_have_another_form_they_say_so(served: Served, path: str, body: dict[str, Any], instead: str) -> None:
    for field, value in (("guided_json", SCHEMA), ("structured_outputs", {"regex": "a"}), ("grammar", GBNF)):
        answer = served.http.post(path, json={**body, field: value})
        assert answer.status_code == 400 and field in answer.text and instead in answer.text
    assert served.engine.submitted == []


def test_a_text_is_no_schema() -> None:
    with pytest.raises(InvalidField, match=r"response_format\.json_schema"):
        read_format({"type": "json_schema", "json_schema": "x"})
