"""Answers within a grammar, however unlikely: a model with random weights, sampled at a high temperature."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLParserLimits

from locallab.engine import Constraint, SamplingParams, TextEngine
from locallab.engine.grammar import bounds, grammars
from locallab.errors import EngineClosed, InvalidField
from tests.support import damaged_gguf, tiny_gguf
from tests.support.live_engine import Answer, agree, ask, check, running
from tests.support.tiny_gguf import BOS, N_VOCAB
from tests.support.tiny_grammar import MARK, MORE, PROMPT

HIDDEN = {0, BOS, tiny_gguf.EOS, MARK}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama", more=MORE)


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[TextEngine]:
    with running(path, context=512, parallel=16, kv_tokens=4096, cache_tokens=512) as engine:
        yield engine


def begin(engine: TextEngine, kind: Any, source: str = "", *, hold: bool = False, **params: Any) -> Answer:
    """Request an answer within `source`, sampled wildly unless `params` differ."""
    answer = Answer(hold=hold)
    wild = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 120}
    sampling = SamplingParams(**{**wild, **params}, constraint=Constraint(kind, source, "grammar"))
    answer.id = engine.submit(PROMPT, sampling, answer)
    return answer


def checked(answer: Answer) -> Answer:
    """Wait for the answer; assert that it is complete or cut, and counted correctly."""
    assert answer.reason in ("stop", "length"), answer.last
    assert answer.last is not None and answer.last.usage is not None
    assert answer.last.usage.completion_tokens == len(answer.tokens)
    return answer


def draw(engine: TextEngine, kind: Any, source: str = "", **params: Any) -> Answer:
    return checked(begin(engine, kind, source, **params))


def valid(schema: Any, answer: Answer) -> bool:
    """Assert that a complete answer is valid; return False for one that was cut."""
    if checked(answer).reason == "length":
        assert len(answer.tokens) == 120
        return False
    jsonschema.Draft202012Validator(schema).validate(json.loads(answer.text))
    return True


DEFS = {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}}}

CLOSED = {"additionalProperties": False}

SCHEMAS: list[Any] = [
    {"type": "string", "maxLength": 4},
    {"type": "string", "minLength": 2, "maxLength": 6},
    {"type": "string", "pattern": "^[a-c]{2,5}$"},
    {"type": "string", "pattern": "^(x|y\\d)z?$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "integer", "minimum": -5, "maximum": 1200},
    {"type": "integer", "exclusiveMinimum": 7, "exclusiveMaximum": 19},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 500},
    {"type": "number", "minimum": 0.25, "maximum": 0.75},
    {"type": "boolean"},
    {"type": "null"},
    {"type": ["boolean", "null"]},
    {"const": "hello \"world\"\n"},
    {"const": {"a": [1, {"b": None}], "ü": "é"}},
    {"enum": ["red", 3, None, {"x": 1}]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False},
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}, "required": ["name"], **CLOSED},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}, **CLOSED},
    {"type": "object", "properties": {"a b": {"const": 1}, "": {"const": 2}}, "required": ["", "a b"], **CLOSED},
    {"type": "object", "required": ["k"], "properties": {"k": {"type": "array", "items": False}}, **CLOSED},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 1},
    {"type": "object", "patternProperties": {"^x[ab]$": {"const": 1}}, "additionalProperties": False, "maxProperties": 2},
    {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]},
    {"oneOf": [{"const": "left"}, {"const": "right"}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
    {"anyOf": [{"type": "object", "properties": {"t": {"const": i}}, "required": ["t"], **CLOSED} for i in (1, 2)]},
    {"$ref": "#/$defs/node", **DEFS},
    {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2, **DEFS},
    {"$ref": "#/definitions/n", "definitions": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}},
    {"title": "T", "description": "d", "type": "boolean", "default": True, "examples": [False], "deprecated": True},
    True,
]  # fmt: skip


def test_a_complete_answer_validates_against_its_schema(engine: TextEngine) -> None:
    answers = [(schema, begin(engine, "json_schema", json.dumps(schema), seed=s)) for schema in SCHEMAS for s in range(3)]
    complete = [valid(schema, answer) for schema, answer in answers]
    assert sum(complete) > 0.8 * len(complete)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "repeat_penalty": 1.5, "frequency_penalty": 1.0},
        {"typical_p": 0.2},
        {"top_k": 5},
        {"top_p": 0.5, "min_p": 0.2},
        {"logit_bias": ((MARK, 100.0), (50, 100.0))},
        {"ignore_eos": True},
    ],
    ids=str,
)
def test_no_way_of_drawing_leaves_the_language(engine: TextEngine, params: dict[str, Any]) -> None:
    answers = [(schema, begin(engine, "json_schema", json.dumps(schema), **params)) for schema in SCHEMAS[8:]]
    assert sum(valid(schema, answer) for schema, answer in answers) > 10


scalars = st.sampled_from([
    {"type": "boolean"}, {"type": "null"}, {"const": "x"}, {"enum": [1, "a", None]}, {"type": "string", "maxLength": 3},
    {"type": "integer", "minimum": 0, "maximum": 99}, {"type": "string", "pattern": "^a?b$"}, {"type": "number", "maximum": 2},
])  # fmt: skip
names = st.sampled_from(["a", "b", "name", "x y", 'q"', "é", "a/b"])


def _compound(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def obj(properties: dict[str, Any], n: int, more: Any) -> Any:
        required = sorted(properties)[:n]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": more,
            "maxProperties": 3,
        }

    return st.one_of(
        st.builds(obj, st.dictionaries(names, parts, max_size=3), st.integers(0, 3), st.just(False) | parts),
        st.builds(lambda items, n: {"type": "array", "items": items, "maxItems": n}, parts, st.integers(0, 2)),
        st.builds(lambda options: {"anyOf": options}, st.lists(parts, min_size=1, max_size=3)),
        st.builds(lambda part: {"allOf": [part, {"title": "t"}]}, parts),
    )


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=st.recursive(scalars, _compound, max_leaves=6), seed=st.integers(0, 1000))
def test_any_schema_is_enforced_or_refused(engine: TextEngine, schema: Any, seed: int) -> None:
    try:
        answer = begin(engine, "json_schema", json.dumps(schema), seed=seed)
    except InvalidField as error:
        assert error.field == "grammar"
        return
    valid(schema, answer)


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_a_json_object_is_one(engine: TextEngine, temperature: float) -> None:
    for seed in range(5):
        answer = draw(engine, "json_object", seed=seed, temperature=temperature, logit_bias=((ord("}") + 3, 6.0),))
        if answer.reason == "stop":
            assert isinstance(json.loads(answer.text), dict)
        else:
            assert answer.text.startswith("{") and len(answer.tokens) == 120


TEXT_GRAMMARS: dict[str, tuple[Any, str, str]] = {
    "regex": ("regex", r"\d{3}-[a-f]{2,4}", r"\d{3}-[a-f]{2,4}"),
    "anchored regex": ("regex", r"^a|b$", "a|b"),
    "regex with slashes": ("regex", r"a/b\"[/\n]", 'a/b"[/\n]'),
    "choice": ("choice", '["yes", "no", "maybe not"]', "yes|no|maybe not"),
    "choice of which one begins another": ("choice", '["a", "ab", "abc d"]', "a|ab|abc d"),
    "choice with escapes": ("choice", r'["\u00e9\"\n", "\ud83d\ude00\/"]', 'é"\n|😀/'),
    "lark": ("lark", 'start: "x" item ("," item)*\nitem: /[0-9]/ | "(" item ")"', r"x[0-9(),]+"),
    "lark with a schema": ("lark", 'start: "v=" %json {"enum": ["a", 2]}', 'v=("a"|2)'),
    "gbnf": ("gbnf", 'root ::= ("a" | "b"){2} "-"? [\\u0030-\\u0032]', "[ab]{2}-?[012]"),
    "nothing or little": ("regex", "(ab)?", "(ab)?"),
}


@pytest.mark.parametrize("name", TEXT_GRAMMARS)
def test_a_complete_answer_matches_its_grammar(engine: TextEngine, name: str) -> None:
    kind, source, expected = TEXT_GRAMMARS[name]
    answers = [checked(answer) for answer in [begin(engine, kind, source, seed=seed) for seed in range(6)]]
    complete = [answer.text for answer in answers if answer.reason == "stop"]
    assert complete and [text for text in complete if not re.fullmatch(expected, text)] == []


REFUSED: list[tuple[str, str, str]] = [
    ("json_schema", '{"type": "array", "uniqueItems": true}', '"uniqueItems"'),
    ("json_schema", '{"properties": {"a": {"not": {}}, "b": {"contains": {}}}}', '"not"'),
    ("json_schema", '{"if": {"type": "string"}, "then": {"minLength": 3}}', '"if", "then"'),
    ("json_schema", '{"not": {}, "x-guidance": {"lenient": true}}', '"not"'),
    ("json_schema", '{"type": "object", "minProperties": 2}', "minProperties"),
    ("json_schema", '{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "oneOf"),
    ("json_schema", '{"oneOf": [{"type": "integer"}, {"minimum": 2}], "x-guidance": {"coerce_one_of": true}}', "oneOf"),
    ("json_schema", '{"type": "string", "pattern": "(?=a)"}', "pattern: look-around"),
    ("json_schema", '{"type": "string", "pattern": "a\\\\b"}', "pattern: lookarounds"),
    ("json_schema", '{"$ref": "#/$defs/x"}', "/$defs/x"),
    ("json_schema", '{"type": "wrong"}', "type: wrong"),
    ("json_schema", '{"type": "integer", "minimum": 2, "maximum": 1}', "minimum (2) is greater than maximum (1)"),
    ("json_schema", '{"const": "\\u0001"}', "no text matches"),
    ("json_schema", '{"type": "object"', "is not valid JSON"),
    ("json_schema", "[]", "must be a JSON Schema"),
    ("json_schema", "false", "must be a JSON Schema"),
    ("json_schema", '{"title": "\ud800"}', "surrogate"),
    ("regex", "(a", "unclosed group"),
    ("regex", "(?=a)", "look-around"),
    ("regex", "a\\b", "lookarounds"),
    ("regex", "[a&&b]", "no text matches"),
    ("choice", "[]", "at least one string"),
    ("choice", '["a", 1]', "at least one string"),
    ("choice", '{"a": 1}', "at least one string"),
    ("choice", '[["a"]]', "at least one string"),
    ("lark", 'begin: "a"', "no start rule"),
    ("lark", "start: other", 'unknown name: "other"'),
    ("lark", "start: start", "no text matches"),
    ("lark", 'start: "a" start', "Too many items"),
    ("lark", 'start: "a" %json {"uniqueItems": true}', '"uniqueItems"'),
    ("lark", 'start: "a" %json {"not": {}, "x-guidance": {"lenient": true}}', '"not"'),
    ("lark", 'start: %json {"minProperties": 3}', "minProperties"),
    ("gbnf", "root ::= other", "'other' is used, but not defined"),
    ("lark", "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(1000)) + 'a1000: "x"', "at most 1000 rules"),
    ("regex", "a" * (bounds.LONGEST + 1), "at most 262144 characters, has 262145"),
]


@pytest.mark.parametrize(("kind", "source", "reason"), REFUSED, ids=[f"{kind} {source[:60]!a}" for kind, source, _ in REFUSED])
def test_what_cannot_be_enforced_is_refused_by_name(engine: TextEngine, kind: Any, source: str, reason: str) -> None:
    for refuse in (engine.prepare, lambda c: engine.submit(PROMPT, SamplingParams(constraint=c), print)):
        with pytest.raises(InvalidField) as caught:
            refuse(Constraint(kind, source, "response_format"))
        assert caught.value.field == "response_format"
        assert reason in caught.value.reason and "\n" not in caught.value.reason and "guidance" not in caught.value.reason


def test_references_that_lead_on_for_thousands_of_steps_are_followed(engine: TextEngine) -> None:
    """On an ordinary thread's stack they would end the process."""
    steps = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(7000)}
    schema = {"$ref": "#/$defs/0", "$defs": {**steps, "7000": {"const": "end"}}}
    assert draw(engine, "json_schema", json.dumps(schema, separators=(",", ":"))).text == '"end"'


@pytest.mark.parametrize("begin", ['json_schema {"', "lark start: ", "gbnf root ::= ", 'choice ["a", "'])
@pytest.mark.parametrize("part", ['\\"', "[", "{", "/", "(", "%json {", "a::=", ",", "\\"])
def test_much_nonsense_is_refused_without_ado(engine: TextEngine, begin: str, part: str) -> None:
    """It neither hangs nor ends the process; a comment is none."""
    kind, _, text = begin.partition(" ")
    source = (text + part * bounds.LONGEST)[: bounds.LONGEST]
    try:
        engine.prepare(Constraint(kind, source))  # type: ignore[arg-type]
    except InvalidField as error:
        assert len(error.reason) < 500
    else:
        assert source.startswith("start: //")


def test_a_name_cannot_be_spelt_so_that_the_schema_does_not_know_it(engine: TextEngine) -> None:
    """With \\u0061 for "a", "a" could be anything that other properties may be."""
    bias = tuple((token + 3, 8.0) for token in b'\\u061"}')
    schema = {"properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": {"const": 2}, "maxProperties": 2}
    schema = {"type": "object", **schema}
    for kind, source in (("json_schema", json.dumps(schema)), ("lark", f"start: %json {json.dumps(schema)}")):
        answers = [begin(engine, kind, source, seed=seed, logit_bias=bias) for seed in range(8)]
        assert sum(valid(schema, answer) for answer in answers) > 0
        assert not any("\\u" in answer.text for answer in answers)


def test_control_tokens_are_never_said_in_passing_but_can_be_asked_for(engine: TextEngine) -> None:
    bias = tuple((token, 20.0) for token in HIDDEN - {tiny_gguf.EOS})
    free = Answer()
    engine.submit(PROMPT, SamplingParams(temperature=3, max_tokens=60, logit_bias=bias), free)
    assert set(free.ended().tokens) & HIDDEN
    held = draw(engine, "regex", "(?s:.)*", logit_bias=bias, max_tokens=60)
    assert not set(held.tokens[:-1]) & HIDDEN
    named = draw(engine, "lark", 'start: "a" <|mark|> "b"')
    assert named.text == "ab" and named.tokens[1] == MARK
    assert draw(engine, "regex", "<tag>", temperature=0).tokens == [N_VOCAB + len(MORE) - 1], "it shows, so it is text"


def test_what_is_forced_takes_few_steps_and_is_counted(engine: TextEngine) -> None:
    text = json.dumps({"name": "ab ab ab name", "value": [True, None]})
    before = engine.stats()
    answer = draw(engine, "json_schema", json.dumps({"const": json.loads(text)}))
    after = engine.stats()
    assert answer.text == text and answer.reason == "stop"
    assert len(answer.tokens) > 10 and after.completion_tokens - before.completion_tokens == len(answer.tokens)
    assert after.steps - before.steps < len(answer.tokens) / 2


def test_what_a_request_forbids_is_not_forced(engine: TextEngine) -> None:
    """Where the grammar leaves nothing else, the answer ends."""
    token, other = draw(engine, "regex", "zy", temperature=0.0).tokens
    for forbids in ({"logit_bias": ((token, -math.inf),)}, {"allowed_token_ids": (other,)}):
        nothing = draw(engine, "regex", "zy", temperature=0.0, **forbids)
        assert (nothing.text, nothing.tokens, nothing.reason) == ("", [], "stop")
        assert draw(engine, "choice", '["zyy", "yyy"]', max_tokens=9, temperature=0.0, **forbids).text == "yyy"
    half = draw(engine, "regex", " zy", temperature=0.0, bad_words=("zy",))
    assert (half.text, half.reason) == (" z", "stop")


def test_a_model_that_does_not_keep_its_texts_refuses(tmp_path: Path) -> None:
    """This one has no blank: tokenised, it becomes three bytes of another character."""
    blind = tiny_gguf.write(tmp_path / "blind.gguf", "llama")
    with running(blind) as engine, pytest.raises(InvalidField, match="tokenizer of this model"):
        engine.prepare(Constraint("json_object", field="response_format"))


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8])
def test_max_tokens_and_stop_strings_cut_what_is_forced(engine: TextEngine, limit: int) -> None:
    text = '{"name": "ab"}'
    source = json.dumps({"const": json.loads(text)})
    cut = draw(engine, "json_schema", source, max_tokens=limit)
    assert (cut.reason, len(cut.tokens)) == ("length", limit)
    assert text.startswith(cut.text)
    stopped = draw(engine, "json_schema", source, stop=('": ',))
    assert (stopped.reason, stopped.text) == ("stop", '{"name')


def test_the_context_cuts_what_is_forced(engine: TextEngine) -> None:
    answer = draw(engine, "choice", json.dumps(["ab" * 2000]), max_tokens=None)
    assert answer.reason == "length" and len(answer.tokens) == engine.info.context - len(PROMPT)


def test_ignoring_the_end_goes_on_only_where_the_grammar_does(engine: TextEngine) -> None:
    for _ in range(3):
        assert draw(engine, "regex", "(ab){0,3}", ignore_eos=True).text == "ababab"
    assert draw(engine, "regex", "", ignore_eos=True).text == ""


def test_others_in_the_batch_are_not_touched(engine: TextEngine, path: Path) -> None:
    """And no threads for masks start before the first grammar."""
    prompts = [[BOS, *range(50 + i, 90 + i)] for i in range(4)]
    free = [Answer() for _ in prompts]
    for prompt, answer in zip(prompts, free, strict=True):
        begin(engine, "json_object", seed=1)
        engine.submit(prompt, SamplingParams(temperature=0, ignore_eos=True, max_tokens=40), answer)
    for prompt, answer in zip(prompts, free, strict=True):
        check(path, prompt, answer.ended().tokens)
    with running(path) as fresh:
        ask(fresh, PROMPT, 10)
        assert not any(
            thread.name.startswith("masks") for thread in threading.enumerate() if thread.ident not in _threads(engine)
        )


def _threads(engine: TextEngine) -> set[int | None]:
    pool = engine._worker._masks._pool
    return {thread.ident for thread in pool._threads} if pool else set()


def test_the_same_with_and_without_what_is_cached(path: Path) -> None:
    schema = json.dumps(
        {"type": "array", "items": {"enum": ["a", "b", "c", "d", "e", "f", "g", "h"]}, "minItems": 4, "maxItems": 4}
    )
    with running(path, cache_tokens=256) as engine:
        answers = [draw(engine, "json_schema", schema, temperature=0, logprobs=0) for _ in range(2)]
    assert [answer.cached for answer in answers] == [0, len(PROMPT) - 1]
    agree(*answers)


def test_a_request_cancelled_in_mid_answer_leaves_the_others_alone(engine: TextEngine) -> None:
    held = begin(engine, "regex", "[ab]{100}", hold=True)
    other = begin(engine, "regex", "[cd]{20}")
    engine.cancel(held.begun().id)
    held.release()
    assert held.reason == "cancelled"
    assert re.fullmatch("[cd]{20}", checked(other).text)


def test_a_grammar_that_grows_too_complex_ends_its_request_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LIMITS", LLParserLimits(step_max_items=400, verbose_errors=False))
    with running(path) as engine:
        lost = begin(engine, "lark", 'start: x\nx: "a" | "b" | x x', ignore_eos=True)
        fine = begin(engine, "regex", "[cd]{20}")
        assert lost.reason == "error" and lost.tokens
        assert lost.last is not None and "the grammar cannot be followed" in str(lost.last.error)
        assert isinstance(lost.last.error, InvalidField) and lost.last.error.field == "grammar"
        assert re.fullmatch("[cd]{20}", checked(fine).text)


def test_the_last_used_are_kept_compiled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "CAPACITY", 3)
    compiled: list[Constraint] = []
    compile = grammars.Grammars._compile
    monkeypatch.setattr(grammars.Grammars, "_compile", lambda self, c: (compiled.append(c), compile(self, c))[1])
    first, *others = (Constraint("choice", f'["{text}"]') for text in "abcd")
    with running(path) as engine:
        for each in (first, others[0], first, *others[1:], first, others[0]):
            engine.prepare(each)
        draw(engine, "choice", '["x"]')
    assert compiled[:-1] == [first, *others, others[0]]


def test_any_thread_may_prepare_and_a_closed_engine_refuses(path: Path) -> None:
    sources = [f'{{"const": "{i % 7}"}}' for i in range(40)]
    with running(path, parallel=64, queue=64) as engine, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda source: begin(engine, "json_schema", source), sources))
        assert [checked(answer).text for answer in answers] == [f'"{i % 7}"' for i in range(40)]
    for refuse in (engine.prepare, lambda c: engine.submit(PROMPT, SamplingParams(constraint=c), print)):
        with pytest.raises(EngineClosed):
            refuse(Constraint("regex", "never seen"))


def test_the_real_model_gives_a_json_object(model_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    chat = "<|im_start|>user\nInvent a person.<|im_end|>\n<|im_start|>assistant\n"
    with running(model_path, context=128, parallel=2) as engine:
        prompt = engine.tokenize(chat, add_special=False, parse_special=True)
        answers: Sequence[Answer] = [Answer(), Answer()]
        for answer, (kind, source) in zip(answers, [("json_schema", json.dumps(schema)), ("json_object", "")], strict=True):
            sampling = SamplingParams(temperature=0, max_tokens=40, constraint=Constraint(kind, source))  # type: ignore[arg-type]
            engine.submit(prompt, sampling, answer)
        person, anything = (json.loads(checked(answer).text) for answer in answers)
    jsonschema.validate(person, schema)
    assert isinstance(anything, dict)
    assert max(len(answer.tokens) for answer in answers) < 40


def test_a_vocabulary_that_llguidance_cannot_use_refuses_the_field(tmp_path: Path) -> None:
    """Without types, byte tokens are texts like any other."""
    path = damaged_gguf.write(tmp_path / "plain.gguf", "llama", lambda g: g.keys.pop("tokenizer.ggml.token_type"))
    with running(path) as engine:
        with pytest.raises(InvalidField, match="grammar: cannot be enforced: the vocabulary of this model cannot be used"):
            engine.prepare(Constraint("choice", '["a"]'))
        assert len(ask(engine, [BOS], 2).tokens) == 2
