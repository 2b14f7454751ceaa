from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from locallab.chat import Message
from locallab.errors import ConfigError
from locallab.server.dialects.assistant import request
from locallab.server.dialects.assistant.templates import FIELDS, TASKS, Templates, numbered, overrides

SHIPPED = Templates.load()
SCHEMAS = {"debug": request.debug_schema(characters=100), "audit": request.audit_schema(lines=12)}


def user(task: str, prompt: str) -> str:
    return SHIPPED.messages(task, prompt)[-1].content


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_the_shipped_templates_are_those_of_the_api_document() -> None:
    assert dict(SHIPPED.templates) == {
        "refactor": "Refactor this code:\n{code}",
        "debug": "Debug this code:\n{code}",
        "generate": "Generate code for:\n{description}",
        "audit": "Audit this code for security:\n{code}",
        "document": "Document this code:\n{code}",
    }


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_system_message_and_the_prompt_last(task: str) -> None:
    system, asked = SHIPPED.messages(task, "x = 1")
    assert (system.role, asked.role) == ("system", "user")
    assert system.content and "x = 1" in asked.content and "{" not in system.content


@pytest.mark.parametrize("task", TASKS)
def test_the_language_is_named_if_the_request_names_it(task: str) -> None:
    assert "Rust" in SHIPPED.messages(task, "x", language="Rust")[0].content
    assert "{language}" not in SHIPPED.messages(task, "x")[0].content
    assert len(SHIPPED.messages(task, "x")[0].content) < len(SHIPPED.messages(task, "x", language="C")[0].content)


@pytest.mark.parametrize("task", ["debug", "audit"])
def test_json_has_instructions_of_its_own_that_name_every_field(task: str) -> None:
    text, wanted = (SHIPPED.messages(task, "x", as_json=as_json)[0].content for as_json in (False, True))
    assert text != wanted
    assert all(f'"{name}"' in wanted for name in SCHEMAS[task]["properties"])


def test_history_comes_between() -> None:
    history = [Message("user", "a"), Message("assistant", "b")]
    for task in TASKS:
        system, *middle, last = SHIPPED.messages(task, "c", history=history)
        assert system.role == "system" and middle == history and "c" in last.content


def test_a_system_message_in_a_chat_counts_instead_of_ours() -> None:
    own = Message("system", "You are a pirate.")
    assert SHIPPED.messages("chat", "hi", history=[own]) == [own, Message("user", "hi")]
    assert [m.role for m in SHIPPED.messages("debug", "hi", history=[own])] == ["system", "system", "user"]


CODE = [
    "{code}",
    "{language}",
    "{}",
    "{0.__class__}",
    "{code.__class__}",
    "f'{x!r:>{width}}'",
    "{{code}}",
    "{description}",
    "%s $x \\1",
]


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("task", [task for task in FIELDS if task != "audit"])
def test_code_goes_in_as_it_is(task: str, code: str) -> None:
    assert user(task, code) == SHIPPED.templates[task].partition("{")[0] + code


@given(st.text())
def test_any_code_goes_in_as_it_is(code: str) -> None:
    assert user("refactor", code) == f"Refactor this code:\n{code}"
    assert user("chat", code) == code


def test_the_code_of_an_audit_is_numbered() -> None:
    assert user("audit", "a\n\nb") == "Audit this code for security:\n1 | a\n2 | \n3 | b"
    assert numbered("x\n" * 10).splitlines()[0] == " 1 | x"
    assert numbered("") == "1 | "


def test_what_a_file_names_is_overridden_and_the_rest_stays(tmp_path: Path) -> None:
    mine = write(tmp_path, "templates: {debug: 'In {language}, why? {code}'}\nsystem: {chat: ''}\n")
    templates = Templates.load(mine)
    assert templates.messages("debug", "{x}", language="C")[-1].content == "In C, why? {x}"
    assert templates.messages("chat", "hi") == [Message("user", "hi")]
    assert templates.templates["audit"] == SHIPPED.templates["audit"]
    assert templates.system["debug"] == SHIPPED.system["debug"]


def test_a_line_that_speaks_of_the_language_goes_with_it(tmp_path: Path) -> None:
    mine = write(tmp_path, 'templates: {generate: "First.\\nIn {language}.\\n{description}"}')
    assert Templates.load(mine).messages("generate", "x")[-1].content == "First.\nx"


def test_what_the_api_answers_may_be_pasted(tmp_path: Path) -> None:
    mine = write(tmp_path, json.dumps({"templates": dict(SHIPPED.templates)}))
    assert Templates.load(mine) == SHIPPED


def test_braces_that_are_no_field_are_text(tmp_path: Path) -> None:
    mine = write(tmp_path, "system: {debug: 'Answer {\"code\": 1} or { code } or {1}.'}")
    assert Templates.load(mine).messages("debug", "x")[0].content == 'Answer {"code": 1} or { code } or {1}.'


WRONG = {
    "empty": ("", "must hold a mapping with the keys templates, system, json"),
    "a list": ("- a", "must hold a mapping"),
    "no YAML": ("a: [", "not valid YAML"),
    "unknown key": ("prompts: {}", "unknown key 'prompts'; known: templates, system, json"),
    "no mapping": ("templates: text", "templates: must be a mapping from task to text, got 'text'"),
    "unknown task": ("templates: {explain: '{code}'}", "templates: unknown task 'explain'; known: generate, refactor"),
    "chat has no template": ("templates: {chat: '{code}'}", "templates: unknown task 'chat'"),
    "no JSON for it": ("json: {document: x}", "json: unknown task 'document'; known: debug, audit"),
    "no text": ("system: {debug: 3}", "system: debug: must be a text, got 3"),
    "unknown field": (
        "templates: {debug: '{code} {file}'}",
        r"templates: debug: unknown field {file}; known: {code}, {language}",
    ),
    "field of another task": ("templates: {debug: '{description}'}", "debug: unknown field {description}"),
    "field of a template": ("system: {debug: '{code}'}", "system: debug: unknown field {code}; known: {language}"),
    "without the prompt": ("templates: {generate: 'Hello'}", "templates: generate: must hold the field {description}"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        Templates.load(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"templates: .*none\.yaml: No such file"):
        Templates.load(tmp_path / "none.yaml")


def test_where_the_users_own_file_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLAB_CONFIG", str(tmp_path))
    assert overrides(None) == []
    own = tmp_path / "templates.yaml"
    own.write_text("system: {}")
    assert overrides(None) == [own]
    assert overrides("~/other.yaml") == [Path("~/other.yaml").expanduser()]


@pytest.mark.parametrize("task", SCHEMAS)
def test_schemas_are_schemas_and_everything_in_them_is_bounded(task: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[task])
    assert all(bounded(each) for each in parts(SCHEMAS[task]))


def parts(schema: dict[str, object]) -> list[dict[str, object]]:
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]  # type: ignore[attr-defined]
    return [schema, *(part for each in inner for part in parts(each))]


def bounded(schema: dict[str, object]) -> bool:
    bounds = {"string": "maxLength", "array": "maxItems", "object": "additionalProperties"}
    return bounds.get(str(schema.get("type")), "type") in schema or "enum" in schema


def test_a_finding() -> None:
    finding = {"title": "t", "detail": "d", "line": 3, "severity": "high", "fix": "f"}
    valid = Draft202012Validator(SCHEMAS["audit"]).is_valid
    assert all(valid({"findings": [{**finding, "severity": severity}], "summary": ""}) for severity in request.SEVERITIES)
    assert valid({"findings": [{**finding, "line": None}], "summary": ""}) and valid({"findings": [], "summary": "none"})
    for wrong in ({"severity": "bad"}, {"line": 0}, {"line": 13}, {"line": "3"}, {"more": 1}):
        assert not valid({"findings": [{**finding, **wrong}], "summary": ""})
