"""Tool calls, structured answers and reasoning over /v1/chat/completions, with openai-python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from locallab.engine.request import Constraint
from locallab.errors import InvalidField
from locallab.server.fields.tools import read_choice, read_tools
from tests.support.http_server import Serve, Served

USER: Any = [{"role": "user", "content": "How is the weather in Oslo?"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": None, "parameters": {"properties": {"city": {"type": "string"}}}},
}
TIME: Any = {"type": "function", "function": {"name": "time"}}
CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)
THINKING = "{% for m in messages %}{{ m.content }}{% endfor %}{# </think> #}<think>\n"


@pytest.fixture
def served(serve: Serve) -> Iterator[Served]:
    with serve(engine={"context": 4096}) as served:
        yield served


def ask(served: Served, **more: Any) -> Any:
    return served.openai.chat.completions.create(model="x", messages=USER, **more)


@pytest.mark.parametrize(
    ("more", "end"), [({}, "Well,<|im_end|>\n<|im_start|>assistant\n"), ({"continue_final_message": True}, "Well,")]
)
def test_a_last_message_of_the_assistant_is_gone_on_with_if_asked(served: Served, more: Any, end: str) -> None:
    messages: Any = [*USER, {"role": "assistant", "content": "Well,"}]
    served.openai.chat.completions.create(model="x", messages=messages, extra_body=more)
    assert served.engine.submitted[-1][0].endswith(end)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_out_of_the_answer(served: Served, size: int) -> None:
    served.script(*(f"Let me see.\n{CALLS}".encode()[at : at + size] for at in range(0, 200, size)))
    choice = ask(served, tools=[WEATHER, TIME]).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    calls = [(call.type, call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert calls == [("function", "weather", {"city": "Oslo"}), ("function", "time", {})]
    assert len({call.id for call in choice.message.tool_calls}) == 2


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_streamed_name_and_id_once_arguments_in_pieces(served: Served, size: int) -> None:
    served.script(*(CALLS.encode()[at : at + size] for at in range(0, len(CALLS), size)))
    heads: dict[int, tuple[str, str]] = {}
    arguments: dict[int, str] = {}
    finished = []
    for chunk in ask(served, tools=[WEATHER, TIME], stream=True):
        (choice,) = chunk.choices
        assert not choice.delta.content
        finished += [choice.finish_reason] if choice.finish_reason else []
        for call in choice.delta.tool_calls or ():
            if call.id is not None:
                assert call.index not in heads and call.function.name
                heads[call.index] = (call.id, call.function.name)
            else:
                assert call.function.name is None
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    assert [name for _, name in heads.values()] == ["weather", "time"]
    assert [json.loads(text) for text in arguments.values()] == [{"city": "Oslo"}, {}]
    assert finished == ["tool_calls"]


def test_a_message_that_only_calls_has_no_content(served: Served) -> None:
    served.script(CALLS.encode())
    assert ask(served, tools=[WEATHER, TIME]).choices[0].message.content is None


def test_the_choice_goes_to_the_engine_as_a_grammar(served: Served) -> None:
    served.script(b"x")
    ask(served, tools=[WEATHER, TIME], tool_choice={"type": "function", "function": {"name": "time"}})
    constraint = served.engine.submitted[-1][1].constraint
    assert constraint is not None and constraint.kind == "lark"
    assert "time" in constraint.source and "weather" not in constraint.source
    ask(served, tools=[WEATHER, TIME], tool_choice="none")
    prompt, params = served.engine.submitted[-1]
    assert params.constraint is None and 'weather"' not in prompt


def test_history_with_calls_and_results(served: Served) -> None:
    served.script(b"x")
    history = [
        *USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city'}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
        {"role": "tool", "tool_call_id": "gone", "content": "sun"},
    ]
    reply = served.http.post("/v1/chat/completions", json={"messages": history, "tools": [WEATHER, {"type": "web_search"}]})
    assert reply.status_code == 200, reply.text
    notes = reply.headers["x-locallab-notes"]
    assert "messages[1].tool_calls[0]" in notes and "messages[3]" in notes and "tools[1]" in notes
    prompt = served.engine.submitted[-1][0]
    assert "rain" in prompt and "sun" in prompt


FORMATS: dict[str, tuple[dict[str, Any], Constraint]] = {
    "object": ({"response_format": {"type": "json_object"}}, Constraint("json_object", "", "response_format")),
    "schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "null"}}}},
        Constraint("json_schema", '{"type": "null"}', "response_format.json_schema.schema"),
    ),
    "schema that leaves room for more": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {}}}}}},
        Constraint(
            "json_schema", '{"properties": {"a": {}}, "additionalProperties": false}', "response_format.json_schema.schema"
        ),
    ),
    "gbnf": ({"grammar": 'root ::= "a"'}, Constraint("gbnf", 'root ::= "a"', "grammar")),
    "lark": ({"grammar": 'start: "a"'}, Constraint("lark", 'start: "a"', "grammar")),
    "regex": ({"regex": "a+"}, Constraint("regex", "a+", "regex")),
    "choice": ({"choice": ["a", "b"]}, Constraint("choice", '["a", "b"]', "choice")),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/chat", "/generate"])
@pytest.mark.parametrize(("fields", "constraint"), FORMATS.values(), ids=FORMATS)
def test_what_the_answer_must_match_goes_to_the_engine(
    served: Served, path: str, fields: dict[str, Any], constraint: Constraint
) -> None:
    served.script(b"x")
    body = {"messages": USER} if "chat" in path else {"prompt": "x"}
    reply = served.http.post(path, json={**body, **fields})
    assert reply.status_code == 200, reply.text
    assert served.engine.submitted[-1][1].constraint == constraint


def test_reasoning_comes_apart_from_the_answer(serve: Serve) -> None:
    with serve(engine={"template": THINKING}) as served:
        served.script(b"It rains", b" often.</th", b"ink>\n\nRain.")
        message = ask(served).choices[0].message
        assert (message.content, message.reasoning_content) == ("Rain.", "It rains often.")
        deltas = [chunk.choices[0].delta for chunk in ask(served, stream=True)]
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "It rains often."
        assert "".join(delta.content or "" for delta in deltas) == "Rain."


@pytest.mark.parametrize(
    "wish",
    [
        {"reasoning_effort": "none"},
        {"enable_thinking": False},
        {"reasoning": {"enabled": False}},
        {"reasoning_budget": 0},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
    ids=lambda wish: next(iter(wish)),
)
def test_reasoning_can_be_switched_off(serve: Serve, wish: dict[str, Any]) -> None:
    with serve(engine={"template": THINKING}) as served:
        served.script(b"Rain.")
        reply = served.http.post("/v1/chat/completions", json={"messages": USER, **wish}).json()
        message = reply["choices"][0]["message"]
        assert message["content"] == "Rain." and "reasoning_content" not in message
        assert served.engine.submitted[-1][0].endswith("</think>\n\n")


HARMONY = "{% for m in messages %}{{ m.content }}{% endfor %}{# <|channel|><|message|> #}"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_sent_as_a_message_is_answered_with_the_text_alone(serve: Serve, stream: bool) -> None:
    with serve(engine={"template": HARMONY}) as served:
        served.script(b"<|channel|>analysis<|mess", b"age|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Ra", b"in.")
        reply = served.http.post("/generate", json={"prompt": "Sun?", "chat_template": True, "stream": stream})
        events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        assert "".join(event["response"] for event in events or [reply.json()]) == "Rain."


def test_a_budget_of_reasoning_goes_to_the_engine(serve: Serve) -> None:
    with serve(engine={"template": THINKING}) as served:
        served.script(b"x")
        served.http.post("/v1/chat/completions", json={"messages": USER, "reasoning_budget": 7})
        budget = served.engine.submitted[-1][1].reasoning
        assert budget is not None and (budget.tokens, budget.end, budget.open) == (7, "</think>", True)


def test_tools_are_bounded_in_bytes_and_a_choice_in_names() -> None:
    large = [{"name": "f", "parameters": {"type": "object", "description": "x" * (1 << 20)}}]
    with pytest.raises(InvalidField, match="tools: must have at most 1 MiB in all"):
        read_tools(large, [])
    tools = read_tools([{"name": f"f{n}"} for n in range(4000)], [])
    named = [{"type": "function", "name": "f0"}]
    assert read_choice({"type": "allowed_tools", "tools": named * 256}, None, tools).names[0] == "f0"
    for wrong in (named * 257, {"a": 1}):
        with pytest.raises(InvalidField, match=r"tool_choice\.tools: expected a list of at most 256 tools"):
            read_choice({"type": "allowed_tools", "tools": wrong}, None, tools)
