"""Custom tools: their grammars as patterns, and their calls in every format."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from locallab.chat import ChatTemplate, Message
from locallab.chat.deltas import gather, held_back
from locallab.chat.tools import FORMATS, Tool, ToolChoice, ToolFormat
from locallab.chat.tools.format import ARGUMENTS, NAME
from locallab.chat.tools.free_form import LONGEST_PATTERN, InputReader, parameters, pattern_of_lark
from locallab.chat.turn import ChatRequest, Turn, plan
from tests.support.tool_calls import CASES

TOKENIZER = LLTokenizer("byte")

PATCH = r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk   // one file
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
filename: /(.+)/
add_line: "+" /(.*)/ LF -> line
%import common.LF
"""
A_PATCH = '*** Begin Patch\n*** Add File: a/b.py\n+say("ü")\n+\n*** Delete File: c\n*** End Patch'

SUM = """
start: expr
expr: term (SP ADD SP term)* -> add
    | term
?term: INT | "(" expr ")"
SP: " "
ADD: "+"
%import common.INT
"""

LARK: dict[str, tuple[str, list[str], list[str]]] = {
    "patch": (PATCH, [A_PATCH, A_PATCH + "\n"], ["", "*** Begin Patch\n*** End Patch", A_PATCH + "x"]),
    "nested": (SUM, ["1", "1 + 2", "(1 + (2)) + 34"], ["", "1+2", "(1", "1 + "]),
    "repeats": ('start: "a"~2 [B] "c"~1..2\nB.2: "b"i', ["aac", "aaBcc"], ["ac", "aabb", "aaccc"]),
    "ranges": ('start: "a".."c"+ /[x-z]+/i', ["abX"], ["dx", "a"]),
    "ignored": ('start: "a" "b"\n%ignore " "', ["ab", " a  b "], ["a", "xab"]),
    "imported by another name": ("start: N\n%import common.INT -> N", ["12"], ["x"]),
    "imported together": ("start: INT WS LETTER\n%import common (INT, WS, LETTER)", ["1 a"], ["1a"]),
    "special characters": (r'start: "a.b\n\"" /\/x/', ['a.b\n"/x'], ['aab\n"/x']),
}


@pytest.mark.parametrize(("grammar", "good", "bad"), LARK.values(), ids=LARK)
def test_a_grammar_is_a_pattern(grammar: str, good: list[str], bad: list[str]) -> None:
    pattern = re.compile(pattern_of_lark(grammar))
    assert all(pattern.fullmatch(text) for text in good)
    assert not any(pattern.fullmatch(text) for text in bad)


WRONG = {
    "nothing": ("", "start is missing"),
    "no rule": ("hello", "expected rules"),
    "no start": ('other: "a"', "start is missing"),
    "missing rule": ("start: other", "other is missing"),
    "missing terminal": ("start: X", "X is missing"),
    "directive": ('start: "a"\n%json {}', "%json is not supported"),
    "import": ("start: X\n%import python.X", "only terminals of common"),
    "import of nothing": ("start: X\n%import common.X", "common.X is not known"),
    "open text": ('start: "a', "cannot read"),
    "too long": (f'start: "{"a" * LONGEST_PATTERN}"', "too large"),
    "bomb": ("start: r0\n" + "\n".join(f"r{i}: r{i + 1}~9 r{i + 1} r{i + 1}" for i in range(60)) + '\nr60: "a"', "too large"),
    "chain": ("start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(5000)) + '\nr5000: "a"', "nested too deeply"),
}


@pytest.mark.parametrize(("grammar", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_grammar_is_refused(grammar: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        pattern_of_lark(grammar)


@given(
    st.text(st.sampled_from('é😀"\\\n\t a{}/u\u2028'), max_size=20), st.booleans(), st.lists(st.integers(0, 200), max_size=5)
)
def test_the_input_is_read_however_its_call_is_cut(text: str, ascii: bool, places: list[int]) -> None:
    raw = json.dumps({"other": 1, "input": text}, ensure_ascii=ascii)
    edges = [0, *sorted(place % (len(raw) + 1) for place in places), len(raw)]
    reader = InputReader()
    assert "".join(reader.feed(raw[a:b]) for a, b in itertools.pairwise(edges)) == text
    cut = InputReader()
    assert text.startswith("".join(cut.feed(char) for char in raw[: edges[1]]))


TOOLS = (
    Tool("move", "Moves.", parameters("regex", "GO [a-z]{1,3}/"), strict=True, custom=True, pattern="GO [a-z]{1,3}/"),
    Tool("patch", "Patches.", parameters("lark", PATCH), strict=True, custom=True, pattern=pattern_of_lark(PATCH)),
    Tool("say", "Says.", parameters(), custom=True),
)
INPUTS = {"move": ("GO abc/", "GO abcd/"), "patch": (A_PATCH, "*** Begin"), "say": ('so\n"it" goes', None)}


def planned(template: str, choice: ToolChoice) -> Turn:
    request = ChatRequest(messages=[Message("user", "Hi")], tools=TOOLS, choice=choice)
    return plan(request, ChatTemplate("{{ messages[0].content }}{# " + template + " #}"), {})


def written(tool_format: ToolFormat, name: str, text: str) -> str:
    """Return a call as a model with this format writes it."""
    arguments = json.dumps({"input": text}, ensure_ascii=False)
    own = {
        "glm": f"<tool_call>{name}<arg_key>input</arg_key><arg_value>{text}</arg_value></tool_call>",
        "qwen-coder": f"<tool_call>\n<function={name}>\n<parameter=input>\n{text}\n</parameter>\n</function>\n</tool_call>",
        "gemma": f'<|tool_call>call:{name}{{input:<|"|>{text}<|"|>}}<tool_call|>',
        "function-gemma": f"<start_function_call>call:{name}{{input:<escape>{text}<escape>}}<end_function_call>",
        "harmony": f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}",
        "recipients": f"{name}\n{arguments}",
    }
    example = tool_format.example.replace(NAME, name).replace(ARGUMENTS, arguments)
    return own.get(tool_format.name, example)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda each: str(each.name))
def test_every_format_enforces_and_returns_the_input(tool_format: ToolFormat, name: str) -> None:
    turn = planned(CASES[tool_format.name][0], ToolChoice("required", (name,), parallel=False))
    assert turn.constraint is not None and turn.format is tool_format
    good, bad = INPUTS[name]
    for text, is_good in ((good, True), (bad, False)):
        if text is None:
            continue
        raw = written(tool_format, name, text)
        matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(turn.constraint.source))
        tokens = TOKENIZER.tokenize_str(raw)
        assert not matcher.get_error()
        assert (matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()) is is_good, raw
    parser = turn.parser()
    answer = gather([*(delta for char in written(tool_format, name, good) for delta in parser.feed(char)), *parser.finish()])
    assert [(call.name, call.arguments, call.custom) for call in answer.calls] == [(name, good, True)] and not answer.text


@pytest.mark.parametrize("mode", ["required", "auto"])
@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda each: str(each.name))
def test_half_a_call_is_no_text(tool_format: ToolFormat, mode: str) -> None:
    turn = planned(CASES[tool_format.name][0], ToolChoice(mode))  # type: ignore[arg-type]
    raw = written(tool_format, "say", "so it goes")
    begin = len(tool_format.begin) if mode == "auto" else 0
    if mode == "auto" and not begin:
        return  # an answer in such a format begins with its call: the beginning may be text
    for size in range(begin, len(raw)):
        if held_back(raw[:size], *tool_format.controls):
            continue  # a control token is not cut
        parser = turn.parser()
        answer = gather([*parser.feed(raw[:size]), *parser.finish()])
        assert not answer.text, raw[:size]
