from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from locallab.chat import ChatTemplate, Message, ToolCall
from locallab.chat.control_tokens import SEAM
from locallab.chat.known_templates import CHATML
from locallab.chat.tools import Tool, ToolChoice
from locallab.chat.turn import ChatRequest, ReasoningOptions, Turn, plan, upcoming
from locallab.engine.request import Constraint
from locallab.errors import InvalidField
from tests.support.splits import parse

TOKENIZER = LLTokenizer("byte")
MESSAGES = [Message("user", "Hi")]
WEATHER = Tool("weather", "Tells the weather", {"properties": {"city": {"type": "string"}}, "required": ["city"]})
TIME = Tool("time")
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
SCHEMA = Constraint("json_schema", json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}}), "response_format")

PLAIN = ChatTemplate(CHATML)
REASONING = ChatTemplate(
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{{ tools }}<tool_call>assistant:"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
OPENED = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}{# </think> #}<think>\n")


def accepts(turn: Turn, text: str) -> bool:
    """Return whether the turn's constraint allows `text` as a whole answer."""
    assert turn.constraint is not None
    grammar = LLMatcher.grammar_from_lark(turn.constraint.source)
    matcher = LLMatcher(TOKENIZER, grammar)
    tokens = TOKENIZER.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def turn(template: ChatTemplate = PLAIN, **request: object) -> Turn:
    return plan(ChatRequest(messages=MESSAGES, **request), template, {})  # type: ignore[arg-type]


def test_a_plain_chat_asks_for_nothing_special() -> None:
    plain = turn()
    assert plain.constraint is None
    assert plain.prompt.endswith("assistant\n")
    assert plain.parser().feed("Hello ") + plain.parser().finish() == plain.parser().feed("Hello ")


@pytest.mark.parametrize(
    ("choice", "allowed", "refused"),
    [
        (ToolChoice(), ["Hi", CALL, f"Hi {CALL}", f"{CALL}\n{OTHER}"], ['<tool_call>\n{"name": "spy", "arguments": {}}']),
        (ToolChoice("required"), [CALL, OTHER, f"{CALL}\n{OTHER}"], ["Hi", f"Hi {CALL}", ""]),
        (ToolChoice("required", ("time",)), [OTHER], [CALL, "Hi"]),
        (ToolChoice(parallel=False), ["Hi", CALL], [f"{CALL}\n{OTHER}"]),
        (ToolChoice("required", parallel=False), [CALL], [f"{CALL}\n{OTHER}", "Hi"]),
    ],
    ids=["auto", "required", "named", "one-at-most", "exactly-one"],
)
@pytest.mark.parametrize("template", [PLAIN, REASONING], ids=["generic", "hermes"])
def test_the_choice_of_tools_is_enforced(
    template: ChatTemplate, choice: ToolChoice, allowed: list[str], refused: list[str]
) -> None:
    made = turn(template, tools=(WEATHER, TIME), choice=choice)
    assert [text for text in allowed if not accepts(made, text)] == []
    assert [text for text in refused if accepts(made, text)] == []


def test_arguments_follow_the_schema() -> None:
    made = turn(tools=(WEATHER,), choice=ToolChoice("required"))
    assert not accepts(made, CALL.replace('"Oslo"', "7"))
    assert not accepts(made, CALL.replace('{"city": "Oslo"}', "{}"))


def test_no_tools_are_offered_where_none_may_be_called() -> None:
    assert turn(tools=(WEATHER,), choice=ToolChoice("none")) == turn()


def test_a_model_without_tools_gets_instructions() -> None:
    prompt = turn(tools=(WEATHER,)).prompt
    assert "weather" in prompt and "<tool_call>" in prompt and '"city"' in prompt


def test_a_template_that_knows_calls_but_lists_no_tools_is_helped() -> None:
    """In the existing system message: some templates take only one."""
    template = ChatTemplate("{{ messages[0].content }}{# <｜tool▁calls▁begin｜> tool_calls #}<{{ messages[-1].content }}>")  # noqa: RUF001
    request = ChatRequest(messages=[Message("system", "Be brief."), *MESSAGES], tools=(WEATHER,))
    prompt = plan(request, template, {}).prompt
    assert '"name": "weather"' in prompt and "<｜tool▁call▁begin｜>" in prompt  # noqa: RUF001
    assert prompt.endswith("Be brief.<Hi>")


def test_earlier_calls_look_as_those_that_a_general_format_asks_for() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}[native]{% endfor %}{% endfor %}")
    talk = [*MESSAGES, Message("assistant", "", tool_calls=(ToolCall("c", "weather", '{"city": "Oslo"}'),))]
    prompt = plan(ChatRequest(messages=talk, tools=(WEATHER,)), template, {}).prompt
    assert CALL in prompt and "[native]" not in prompt
    assert "[native]" in plan(ChatRequest(messages=talk), template, {}).prompt


GEMMA = ChatTemplate(
    "{% for m in messages %}{{ m.content }}{% endfor %}<|turn>model\n"
    "{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}"
)


def test_reasoning_in_a_channel() -> None:
    assert turn(GEMMA, reasoning=ReasoningOptions(enabled=False)).tags is None  # the prompt has closed it
    assert turn(GEMMA).tags is not None
    request = ChatRequest(messages=MESSAGES, reasoning=ReasoningOptions(enabled=True), answer=SCHEMA)
    made = plan(request, GEMMA, {"<|channel>": 7, "<channel|>": 8})
    assert made.visible == ("<|channel>", "<channel|>")
    assert made.constraint is not None and '<[7]> "thought"' in made.constraint.source
    parser = turn(GEMMA, reasoning=ReasoningOptions(enabled=True)).parser()
    answer = parse(parser, "<|channel>thought\nso it goes\n<channel|>Hello")
    assert (answer.reasoning, answer.text) == ("so it goes", "Hello")


def test_a_template_that_knows_tools_gets_them_itself() -> None:
    assert "'function': {'name': 'weather'" in turn(REASONING, tools=(WEATHER,)).prompt


@pytest.mark.parametrize("begin", ["", "<think>so</think>\n\n"])
def test_reasoning_comes_before_what_is_enforced(begin: str) -> None:
    assert accepts(turn(REASONING, tools=(WEATHER,), choice=ToolChoice("required")), begin + CALL)
    assert accepts(turn(REASONING, answer=SCHEMA), begin + '{"a": 1}')
    assert not accepts(turn(REASONING, answer=SCHEMA), begin + "no")


def test_reasoning_that_the_prompt_has_opened_has_to_end_first() -> None:
    made = turn(OPENED, answer=SCHEMA)
    assert accepts(made, 'so</think>{"a": 1}')
    assert not accepts(made, '{"a": 1}')


def test_an_answer_is_either_as_the_schema_says_or_a_call() -> None:
    made = turn(tools=(WEATHER,), answer=SCHEMA)
    assert accepts(made, '{"a": 1}') and accepts(made, CALL)
    assert not accepts(made, "Hi")


@pytest.mark.parametrize("options", [ReasoningOptions(enabled=False), ReasoningOptions(effort="none")])
def test_reasoning_can_be_switched_off(options: ReasoningOptions) -> None:
    made = turn(REASONING, reasoning=options)
    assert made.prompt.endswith("<think>\n\n</think>\n\n") and made.tags is None


def test_reasoning_that_a_template_cannot_switch_off_is_closed() -> None:
    made = turn(OPENED, reasoning=ReasoningOptions(enabled=False))
    assert made.prompt.endswith("</think>\n\n") and made.tags is None


def test_a_grammar_that_cannot_be_embedded_leaves_no_room_for_reasoning() -> None:
    grammar = Constraint("gbnf", 'root ::= "a"')
    made = turn(OPENED, answer=grammar)
    assert made.constraint == grammar and made.tags is None


def test_a_grammar_and_tools_exclude_each_other() -> None:
    with pytest.raises(InvalidField) as raised:
        turn(tools=(WEATHER,), answer=Constraint("gbnf", 'root ::= "a"', "grammar"))
    assert raised.value.field == "grammar"


def test_markers_that_are_control_tokens_are_named_by_id_and_made_visible() -> None:
    request = ChatRequest(messages=MESSAGES, tools=(WEATHER,))
    made = plan(request, REASONING, {"<tool_call>": 7, "</tool_call>": 8, "</think>": 9})
    assert made.visible == ("<tool_call>", "</tool_call>", "</think>")
    assert made.constraint is not None
    assert "<[7]>" in made.constraint.source and '"<tool_call>"' not in made.constraint.source


BEGUN = [*MESSAGES, Message("assistant", "Well, ")]
HARMONY = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}<|start|>assistant{# <|channel|><|message|> #}")


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (PLAIN, "assistant\nWell, "),
        (REASONING, "assistant:Well, "),
        (OPENED, "<think>\n</think>\n\nWell, "),
        (GEMMA, "<|turn>model\nWell, "),
        (HARMONY, "<|start|>assistant<|channel|>final<|message|>Well, "),
    ],
    ids=["plain", "reasoning", "opened", "channel", "harmony"],
)
def test_an_answer_that_has_begun_goes_on_behind_its_beginning(template: ChatTemplate, end: str) -> None:
    made = plan(ChatRequest(messages=BEGUN, continues=True), template, {})
    assert made.prompt.endswith(end) and made.is_plain
    assert not plan(ChatRequest(messages=BEGUN), template, {}).prompt.endswith("Well, ")


def test_a_begun_answer_may_still_call() -> None:
    made = plan(ChatRequest(messages=BEGUN, tools=(WEATHER,), continues=True), REASONING, {})
    assert accepts(made, f"I look. {CALL}")


@pytest.mark.parametrize(
    ("more", "template", "field"),
    [({"answer": SCHEMA}, PLAIN, "response_format"), ({"tools": (WEATHER,)}, HARMONY, "tools")],
    ids=["schema", "harmony with tools"],
)
def test_what_enforces_whole_answers_does_not_go_with_a_begun_one(more: Any, template: ChatTemplate, field: str) -> None:
    with pytest.raises(InvalidField) as raised:
        plan(ChatRequest(messages=BEGUN, continues=True, **more), template, {})
    assert raised.value.field == field


def test_calls_at_the_end_are_no_beginning() -> None:
    talk = [*MESSAGES, Message("assistant", "", tool_calls=(ToolCall("c", "weather", "{}"),))]
    assert ChatRequest(messages=talk, continues=True).begun is None


def test_the_parser_reads_reasoning_text_and_calls() -> None:
    parser = turn(REASONING, tools=(WEATHER,)).parser()
    answer = parse(parser, f"<think>so</think>\n\nLet me see.\n{CALL}\n")
    assert (answer.reasoning, answer.text, parser.called) == ("so", "Let me see.", True)
    assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == [("weather", {"city": "Oslo"})]


def test_prompts_that_are_likely_to_come() -> None:
    """They part from this one behind the system messages, ahead of the last message of the user, and at the next turn."""
    talk = [Message("system", "A"), Message("user", "B"), Message("assistant", "C"), Message("user", "D")]
    template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    for messages in (talk, [*talk, Message("assistant", "E", reasoning="why")]):
        found = list(upcoming(ChatRequest(messages=messages, continues=True), template))
        assert found == [f"[A][{SEAM}]", f"[A][B][C][{SEAM}]", f"[A][B][C][D][{SEAM}][{SEAM}]"]


def test_prompts_that_the_template_refuses_are_left_out() -> None:
    template = ChatTemplate("{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}")
    assert list(upcoming(ChatRequest(messages=MESSAGES), template)) == [SEAM, SEAM]


def test_a_prompt_may_end_with_the_last_message() -> None:
    whole = plan(ChatRequest(messages=MESSAGES), PLAIN, {}).prompt
    bare = plan(ChatRequest(messages=MESSAGES, generation_prompt=False), PLAIN, {}).prompt
    assert whole == f"{bare}<|im_start|>assistant\n" and bare.endswith("<|im_end|>\n")
    begun = ChatRequest(messages=BEGUN, continues=True)
    assert plan(dataclasses.replace(begun, generation_prompt=False), PLAIN, {}) == plan(begun, PLAIN, {})
