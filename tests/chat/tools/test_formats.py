"""Every format: the templates it matches, raw answers of its models, and the grammar that enforces them."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from locallab.chat import ChatTemplate, Message
from locallab.chat.tools import FORMATS, ToolChoice, ToolFormat, choose
from locallab.chat.tools.format import ARGUMENTS, MOST_CALLS, NAME
from locallab.chat.tools.formats.functionary import RECIPIENT
from locallab.chat.turn import ChatRequest, plan
from tests.support.splits import counting_ids, every_split, parse
from tests.support.tool_calls import CASES, HERMES_TIME, JSON_TIME, TOOLS, Case

TOKENIZER = LLTokenizer("byte")


ROWS = [
    pytest.param(next(f for f in FORMATS if f.name == name), template, case, id=f"{name}-{index}")
    for name, (template, cases) in CASES.items()
    for index, case in enumerate(cases)
]


def test_every_format_has_cases() -> None:
    assert {each.name for each in FORMATS} == set(CASES)


@pytest.mark.parametrize(("tool_format", "template", "case"), ROWS)
def test_answers_are_read_however_they_are_cut(tool_format: ToolFormat, template: str, case: Case) -> None:
    assert choose(template) is tool_format
    answer = every_split(lambda: tool_format.parser(TOOLS, counting_ids()), case.raw)
    assert tuple((call.name, json.loads(call.arguments)) for call in answer.calls) == case.calls
    assert (answer.text.strip(), answer.reasoning) == (case.text, case.reasoning)


WORDS = ["Hi", "{", "}", '"', ":", ",", "[", "]", "\n", " ", "<", ">", "é", "name", "time", JSON_TIME, "`"]


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda each: str(each.name))
@given(st.data())
def test_any_answer_is_read_alike_however_it_is_cut(tool_format: ToolFormat, data: st.DataObject) -> None:
    marks = [mark for case in CASES[tool_format.name][1] for mark in re.findall(r"<[^<>\n]+>|\[[A-Z_]+\]|>>>", case.raw)]
    raw = "".join(data.draw(st.lists(st.sampled_from([*WORDS, *marks, *marks, tool_format.begin]), max_size=12)))
    whole = parse(tool_format.parser(TOOLS, counting_ids()), [raw])
    assert parse(tool_format.parser(TOOLS, counting_ids()), raw) == whole
    places = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=4)))
    cut = [raw[begin:end] for begin, end in itertools.pairwise([0, *places, len(raw)])]
    assert parse(tool_format.parser(TOOLS, counting_ids()), cut) == whole


@pytest.mark.parametrize(("tool_format", "template", "case"), ROWS)
def test_no_text_is_lost_when_an_answer_is_cut_off(tool_format: ToolFormat, template: str, case: Case) -> None:
    for size in range(len(case.raw)):
        answer = every_split(lambda: tool_format.parser(TOOLS, counting_ids()), case.raw[:size]) if size % 7 == 0 else None
        assert answer is None or len(answer.calls) <= len(case.calls)


def grammar(template: str, choice: ToolChoice) -> str:
    request = ChatRequest(messages=[Message("user", "Hi")], tools=TOOLS, choice=choice)
    turn = plan(request, ChatTemplate("{{ messages[0].content }}{# " + template + " #}"), {})
    assert turn.constraint is not None
    return turn.constraint.source


def accepts(grammar: str, text: str) -> bool:
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(grammar))
    tokens = TOKENIZER.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(("tool_format", "template", "case"), ROWS)
def test_the_grammar_takes_what_the_model_writes(tool_format: ToolFormat, template: str, case: Case) -> None:
    assert accepts(grammar(template, ToolChoice()), case.raw) is not case.cut
    if case.calls and not case.text and not case.cut:
        assert accepts(grammar(template, ToolChoice("required")), case.raw)
    if not case.calls:
        assert not accepts(grammar(template, ToolChoice("required")), case.raw)
    if len(case.calls) > 1:
        assert not accepts(grammar(template, ToolChoice(parallel=False)), case.raw)


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda each: str(each.name))
def test_the_example_in_the_instructions_is_read_as_a_call(tool_format: ToolFormat) -> None:
    """Instructions are for templates that do not list tools."""
    assert tool_format.example in tool_format.instructions(TOOLS) and '"name": "weather"' in tool_format.instructions(TOOLS)
    written = tool_format.example.replace(NAME, "time").replace(ARGUMENTS, "{}").removeprefix(RECIPIENT)
    answer = every_split(lambda: tool_format.parser(TOOLS, counting_ids()), written)
    assert [call.name for call in answer.calls] == ["time"]


def test_calls_come_to_an_end() -> None:
    template, _ = CASES["hermes"]
    rules = grammar(template, ToolChoice("required"))
    assert accepts(rules, "\n".join([HERMES_TIME] * MOST_CALLS))
    assert not accepts(rules, "\n".join([HERMES_TIME] * (MOST_CALLS + 1)))


@pytest.mark.parametrize(("tool_format", "template", "case"), [row for row in ROWS if "1" in str(row.id)])
def test_the_grammar_refuses_other_tools(tool_format: ToolFormat, template: str, case: Case) -> None:
    assert not accepts(grammar(template, ToolChoice("required")), case.raw.replace("weather", "spy"))
