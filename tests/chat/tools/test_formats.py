"""Every format: the template it knows, raw answers as its models write them, and the grammar that enforces them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from locallab.chat import ChatTemplate, Message
from locallab.chat.tools import FORMATS, Tool, ToolChoice, ToolFormat, choose
from locallab.chat.tools.format import ARGUMENTS, MOST_CALLS, NAME
from locallab.chat.tools.formats.functionary import RECIPIENT
from locallab.chat.turn import ChatRequest, plan
from tests.chat.splits import counting_ids, every_split, parse

WEATHER = Tool(
    "weather",
    "Tells the weather",
    {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
)
TIME = Tool("time")
TOOLS = (WEATHER, TIME)
OSLO = ("weather", {"city": 'Oslo "S"', "days": 3})
NOW: tuple[str, dict[str, Any]] = ("time", {})
TOKENIZER = LLTokenizer("byte")


@dataclasses.dataclass(frozen=True)
class Case:
    """What a model wrote and what it means. `cut`: the answer ends in the middle of what a grammar would want."""

    raw: str
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    text: str = ""
    reasoning: str = ""
    cut: bool = False


HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo \\"S\\"", "days": 3}}\n</tool_call>'
HERMES_TIME = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
QWEN = (
    '<tool_call>\n<function=weather>\n<parameter=city>\nOslo "S"\n</parameter>\n<parameter=days>\n3\n</parameter>\n'
    "</function>\n</tool_call>"
)
QWEN_TIME = "<tool_call>\n<function=time>\n</function>\n</tool_call>"
GLM = (
    '<tool_call>weather<arg_key>city</arg_key><arg_value>Oslo "S"</arg_value>'
    "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>"
)
GLM_TIME = "<tool_call>time</tool_call>"
GLM_LINES = (
    '<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo "S"</arg_value>\n'
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)
ARGS = '{"city": "Oslo \\"S\\"", "days": 3}'
JSON = '{"name": "weather", "arguments": ' + ARGS + "}"
JSON_TIME = '{"name": "time", "arguments": {}}'
DEEP, DEEP_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"  # noqa: RUF001
CALL, CALL_END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"  # noqa: RUF001
SEED = '<|tool_call>call:weather{city:<|"|>Oslo "S"<|"|>,days:3}<tool_call|>'
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"

CASES: dict[str, tuple[str, list[Case]]] = {
    "hermes": (
        "{{ tools }}<tool_call>",
        [
            Case("Hello", text="Hello"),
            Case(HERMES, (OSLO,)),
            Case(f"Let me see.\n{HERMES}\n{HERMES_TIME}", (OSLO, NOW), "Let me see."),
        ],
    ),
    "qwen-coder": (
        "{{ tools }}<tool_call><function=x><parameter=y>",
        [Case("Hello", text="Hello"), Case(f"Let me see.\n{QWEN}\n{QWEN_TIME}", (OSLO, NOW), "Let me see.")],
    ),
    "llama3": (
        "{{ tools }}<|python_tag|> parameters",
        [
            Case("Hello", text="Hello"),
            Case('{"name": "weather", "parameters": ' + ARGS + "}", (OSLO,)),
            Case('<|python_tag|>{"name": "time", "parameters": {}}', (NOW,)),
            Case('{"answer": 42}', text='{"answer": 42}', cut=True),
        ],
    ),
    "mistral": (
        "{{ tools }}[TOOL_CALLS][ARGS]",
        [
            Case("Hello", text="Hello"),
            Case(f"[TOOL_CALLS]weather[ARGS]{ARGS}[TOOL_CALLS]time[ARGS]{{}}", (OSLO, NOW)),
            Case(f"[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{ARGS}", (OSLO,), cut=True),
        ],
    ),
    "mistral-array": (
        "{{ tools }}[TOOL_CALLS]",
        [Case("Hello", text="Hello"), Case(f"[TOOL_CALLS][{JSON}, {JSON_TIME}]", (OSLO, NOW))],
    ),
    "deepseek": (
        "{{ tools }}" + DEEP,
        [
            Case("Hello", text="Hello"),
            Case(
                f"I look.{DEEP}{CALL}weather{SEP}{ARGS}{CALL_END}{CALL}time{SEP}{{}}{CALL_END}{DEEP_END}",
                (OSLO, NOW),
                "I look.",
            ),
        ],
    ),
    "deepseek-r1": (
        "{{ tools }}" + DEEP + "```json",
        [
            Case("Hello", text="Hello"),
            Case(f"{DEEP}{CALL}function{SEP}weather\n```json\n{ARGS}\n```{CALL_END}{DEEP_END}", (OSLO,)),
        ],
    ),
    "granite": (
        "{{ tools }}<|tool_call|>",
        [Case("Hello", text="Hello"), Case(f"<|tool_call|>[{JSON}, {JSON_TIME}]", (OSLO, NOW))],
    ),
    "phi": (
        "{{ tools }}<|tool_call|><|/tool_call|>",
        [Case("Hello", text="Hello"), Case(f"<|tool_call|>[{JSON}, {JSON_TIME}]<|/tool_call|>", (OSLO, NOW))],
    ),
    "function-tags": (
        "{{ tools }}<function=x></function>",
        [Case("Hello", text="Hello"), Case(f"<function=weather>{ARGS}</function><function=time>{{}}</function>", (OSLO, NOW))],
    ),
    "recipients": (
        "{{ tools }}>>>all",
        [
            Case("all\nHello", text="Hello"),
            Case(f"weather\n{ARGS}", (OSLO,)),
            Case(f"all\nI look.\n>>>weather\n{ARGS}\n>>>time\n{{}}", (OSLO, NOW), "I look."),
        ],
    ),
    "gemma": (
        "{{ tools }}<|tool_call>",
        [Case("Hello", text="Hello"), Case(f"{SEED}<|tool_call>call:time{{}}<tool_call|>", (OSLO, NOW))],
    ),
    "function-gemma": (
        "{{ tools }}<start_function_call>",
        [
            Case("Hello", text="Hello"),
            Case('<start_function_call>call:weather{city:<escape>Oslo "S"<escape>,days:3}<end_function_call>', (OSLO,)),
        ],
    ),
    "harmony": (
        "{{ tools }}<|channel|><|message|>",
        [
            Case("<|channel|>final<|message|>Hello", text="Hello"),
            Case(f"{THOUGHT}<|channel|>final<|message|>Hello", text="Hello", reasoning="Hm."),
            Case(f"{THOUGHT}<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGS}", (OSLO,), "", "Hm."),
        ],
    ),
    "apriel": (
        "{{ tools }}<tool_calls>[]</tool_calls>",
        [Case("Hello", text="Hello"), Case(f"I look.\n<tool_calls>[{JSON}, {JSON_TIME}]</tool_calls>", (OSLO, NOW), "I look.")],
    ),
    "glm": (
        "{{ tools }}<tool_call><arg_key></arg_key><arg_value></arg_value>",
        [
            Case("Hello", text="Hello"),
            Case(f"Let me see.\n{GLM}\n{GLM_TIME}", (OSLO, NOW), "Let me see."),
            Case(f"{GLM_LINES}\n<tool_call>time\n</tool_call>", (OSLO, NOW)),
        ],
    ),
    "generic": ("{{ messages }}", [Case("Hello", text="Hello"), Case(f"{HERMES}\n{HERMES_TIME}", (OSLO, NOW))]),
}

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
    said = every_split(lambda: tool_format.parser(TOOLS, counting_ids()), case.raw)
    assert tuple((call.name, json.loads(call.arguments)) for call in said.calls) == case.calls
    assert (said.text.strip(), said.reasoning) == (case.text, case.reasoning)


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
        said = every_split(lambda: tool_format.parser(TOOLS, counting_ids()), case.raw[:size]) if size % 7 == 0 else None
        assert said is None or len(said.calls) <= len(case.calls)


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
def test_what_a_model_is_told_to_write_is_read_as_a_call(tool_format: ToolFormat) -> None:
    """By templates that do not list tools themselves."""
    assert tool_format.example in tool_format.instructions(TOOLS) and '"name": "weather"' in tool_format.instructions(TOOLS)
    written = tool_format.example.replace(NAME, "time").replace(ARGUMENTS, "{}").removeprefix(RECIPIENT)
    said = every_split(lambda: tool_format.parser(TOOLS, counting_ids()), written)
    assert [call.name for call in said.calls] == ["time"]


def test_calls_come_to_an_end() -> None:
    template, _ = CASES["hermes"]
    rules = grammar(template, ToolChoice("required"))
    assert accepts(rules, "\n".join([HERMES_TIME] * MOST_CALLS))
    assert not accepts(rules, "\n".join([HERMES_TIME] * (MOST_CALLS + 1)))


@pytest.mark.parametrize(("tool_format", "template", "case"), [row for row in ROWS if "1" in str(row.id)])
def test_the_grammar_refuses_other_tools(tool_format: ToolFormat, template: str, case: Case) -> None:
    assert not accepts(grammar(template, ToolChoice("required")), case.raw.replace("weather", "spy"))
