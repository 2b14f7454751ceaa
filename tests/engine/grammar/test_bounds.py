"""Grammars that take minutes or gigabytes to compile are refused at once; those that take too long in use end their request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from locallab.engine import Constraint, SamplingParams, TextEngine
from locallab.engine.grammar import bounds, guide
from locallab.errors import InvalidField
from tests.support import tiny_gguf
from tests.support.live_engine import Answer, running
from tests.support.tiny_grammar import MORE, PROMPT


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEngine]:
    path = tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama", more=MORE)
    with running(path, context=512, parallel=4, kv_tokens=2048) as engine:
        yield engine


def doubled(leaf: str, levels: int) -> str:
    """Return a grammar of few characters whose one terminal is its `leaf` 2**levels times."""
    return "\n".join(["start: T0", *(f"T{n}: T{n + 1} T{n + 1}" for n in range(levels)), f"T{levels}: {leaf}"])


def all_of_two(levels: int) -> dict[str, Any]:
    """Return a schema that is 2**levels schemas once its references are put together."""
    twice = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**twice, f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def named(count: int) -> dict[str, Any]:
    return {f"x{n}": {"type": "integer"} for n in range(count)}


BOMBS: dict[str, tuple[str, str | dict[str, Any], str]] = {
    "terminals in terminals": ("lark", doubled("/.*?/", 13), "operators in all"),
    "terminals in terminals in GBNF": (
        "gbnf",
        "\n".join(["root ::= t0", *(f"t{n} ::= t{n + 1} t{n + 1}" for n in range(13)), 't13 ::= "a"?']),
        "operators in all",
    ),
    "quantifiers": ("regex", ".*?" * 8000, "operators in all"),
    "groups": ("regex", "(a|)" * 8000, "operators in all"),
    "quantifiers in GBNF": ("gbnf", "root ::= " + '"a"? ' * 12_000, "operators in all"),
    "quantifiers in a schema": ("json_schema", {"type": "string", "pattern": ".*?" * 8000}, "operators in all"),
    "intersections": ("lark", "start: A\nA: " + " & ".join(f"/(.*a.{{{n}}}b.*)/" for n in range(40)), "operators &"),
    "a long pattern": ("regex", "abc" * 30_000, "at most 65536 characters"),
    "a long grammar": ("lark", 'start: "a"\n' + " \n" * 100_000, "at most 65536 characters"),
    "many schemas": ("lark", "start: " + "%json {} " * 9000, "at most 1000 schemas"),
    "parts of parts": ("json_schema", all_of_two(30), "allOf"),
    "properties": ("json_schema", {"type": "object", "properties": named(7000)}, "at most 1000 names"),
    "required": ("json_schema", {"type": "object", "required": [*named(10_000)]}, "at most 1000 names"),
    "patterns of names": (
        "json_schema",
        {"type": "object", "patternProperties": {f"^x{n}[a-z]*$": {} for n in range(2000)}},
        "at most 64 patterns",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_takes_minutes_to_compile_is_refused(engine: TextEngine, bomb: str) -> None:
    kind, source, reason = BOMBS[bomb]
    text = source if isinstance(source, str) else json.dumps(source)
    with pytest.raises(InvalidField, match=reason):
        engine.prepare(Constraint(kind, text, "it"))  # type: ignore[arg-type]


FINE: dict[str, tuple[str, str | dict[str, Any]]] = {
    "blank lines": ("lark", "\n" * 60_000 + 'start: "a"'),
    "names that are no rules": ("lark", 'start: "a"\n//' + "a" * 60_000),
    "counted repetitions": ("regex", "((a{1,1000}){1,1000}){1,1000}"),
    "terminals in terminals": ("lark", doubled("/[ab]?/", 9)),
    "references": ("json_schema", all_of_two(9)),
    "schemas within the bounds": ("json_schema", {"type": "object", "properties": named(300)}),
    "many items": ("json_schema", {"type": "array", "items": {"type": "string"}, "minItems": 10**9}),
    "a long text": ("json_schema", {"type": "string", "maxLength": 10**9}),
}


@pytest.mark.parametrize("name", FINE)
def test_what_compiles_in_no_time_is_taken(engine: TextEngine, name: str) -> None:
    kind, source = FINE[name]
    engine.prepare(Constraint(kind, source if isinstance(source, str) else json.dumps(source)))  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", [r"\p{" * 20_000, "[" * 60_000, r"\u{" * 20_000])
def test_a_pattern_that_begins_without_end_is_refused_in_linear_time(engine: TextEngine, pattern: str) -> None:
    with pytest.raises(InvalidField, match="it: "):
        engine.prepare(Constraint("json_schema", json.dumps({"type": "string", "pattern": pattern}), "it"))


def test_a_grammar_that_is_slow_at_each_token_ends_its_request_only(
    engine: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guide, "GRACE", 0.05)
    monkeypatch.setattr(guide, "PER_TOKEN", 0.0)
    wild = {"temperature": 3.0, "max_tokens": 400, "ignore_eos": True}
    answers = []
    for kind, source in (("lark", 'start: s\ns: s s | s s s | "a" | "b"'), ("regex", "[cd]{20}")):
        answers.append(Answer())
        params = SamplingParams(**wild, constraint=Constraint(kind, source, "it"))  # type: ignore[arg-type]
        engine.submit(PROMPT, params, answers[-1])
    slow, other = answers
    assert slow.reason == "error" and slow.last is not None and isinstance(slow.last.error, InvalidField)
    assert str(slow.last.error) == "it: the grammar cannot be followed: finding the tokens that it allows takes too long"
    assert other.reason == "stop" and len(other.text) == 20


def test_slow_masks_are_timed_each_by_itself(monkeypatch: pytest.MonkeyPatch, engine: TextEngine) -> None:
    monkeypatch.setattr(guide, "SLOW", 0.0)
    answer = Answer()
    constraint = Constraint("regex", "[cd]{20}", "it")
    engine.submit(PROMPT, SamplingParams(max_tokens=40, constraint=constraint), answer)
    assert answer.reason == "stop" and len(answer.text) == 20 and set(answer.text) <= set("cd")


def test_the_limits_of_a_step_are_lower_than_the_defaults() -> None:
    assert bounds.LIMITS.step_max_items == 20_000 and bounds.LIMITS.step_lexer_fuel == 50_000
