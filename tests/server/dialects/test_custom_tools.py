"""Custom tools and namespaces in chats and Responses, and forced calls that are cut off in every dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.dialect_requests import PARAMETERS, named_events
from tests.support.fake_engine import say
from tests.support.http_server import Served

REGEX = {"syntax": "regex", "definition": "GO [a-z]{1,3}"}
LARK = {"syntax": "lark", "definition": 'start: "GO " /[a-z]/'}
INPUT = 'GO "ü"\n😀'
CALL = f"<tool_call>\n{json.dumps({'name': 'move', 'arguments': {'input': INPUT}})}\n</tool_call>"
OF_NAMESPACE = '<tool_call>\n{"name": "mcp__dict__lookup", "arguments": {"word": "sun"}}\n</tool_call>'
NAMESPACE = {
    "type": "namespace",
    "name": "mcp__dict",
    "description": "A dictionary.",
    "tools": [{"type": "function", "name": "lookup", "description": "Looks up.", "parameters": PARAMETERS}],
}


def custom(form: Any = None) -> dict[str, Any]:
    return {"type": "custom", "name": "move", "description": "Moves.", **({"format": form} if form else {})}


def chat(served: Served, **more: Any) -> Any:
    tool = {"type": "custom", "custom": {"name": "move", "format": {"type": "grammar", "grammar": REGEX}}}
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool], **more}
    return served.http.post("/v1/chat/completions", json=body)


def responses(served: Served, *tools: Any, **more: Any) -> Any:
    response = served.http.post("/v1/responses", json={"input": "hi", "tools": tools, **more})
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_call_in_a_chat(thinking: Served, size: int) -> None:
    thinking.script(*say(CALL, size))
    [choice] = chat(thinking).json()["choices"]
    [call] = choice["message"]["tool_calls"]
    assert call == {"id": call["id"], "type": "custom", "custom": {"name": "move", "input": INPUT}}
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    lines = [line.removeprefix("data: ") for line in chat(thinking, stream=True).text.split("\n\n")[:-2]]
    deltas = [call for line in lines for call in json.loads(line)["choices"][0]["delta"].get("tool_calls", [])]
    assert deltas[0]["custom"] == {"name": "move", "input": ""} and all("function" not in delta for delta in deltas)
    assert "".join(delta["custom"]["input"] for delta in deltas) == INPUT


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_call_in_a_response(thinking: Served, size: int) -> None:
    thinking.script(*say(CALL, size))
    form = {"type": "grammar", **LARK}
    body = responses(thinking, custom(form)).json()
    [item] = body["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "move", INPUT)
    assert body["tools"] == [custom(form)]
    events = named_events(responses(thinking, custom(form), stream=True).text)
    kind = "response.custom_tool_call_input"
    assert "".join(event["delta"] for event in events if event["type"] == f"{kind}.delta") == INPUT
    assert [event["input"] for event in events if event["type"] == f"{kind}.done"] == [INPUT]
    again = [
        {"role": "user", "content": "hi"},
        item,
        {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "ok"},
    ]
    responses(thinking, custom(form), input=again)
    said = json.dumps({"input": INPUT}, ensure_ascii=False)
    assert f"[move {said} {item['call_id']}]\n<tool>ok" in thinking.engine.submitted[-1][0]


@pytest.mark.parametrize("form", [{"type": "text"}, {"type": "grammar", **REGEX}, {"type": "grammar", **LARK}, None])
def test_the_model_is_told_and_held_to_the_grammar(thinking: Served, form: Any) -> None:
    thinking.script(*say(CALL))
    choice = {"type": "custom", "name": "move"}
    responses(thinking, custom(form), {"type": "function", "name": "f", "parameters": {}}, tool_choice=choice)
    prompt, params = thinking.engine.submitted[-1]
    assert "<can>move" in prompt and params.constraint is not None
    grammar = params.constraint.source
    assert '"move' in grammar.replace("\\", "") and ("[a-z]" in grammar) is (form is not None and form["type"] == "grammar")
    assert "call_1" not in grammar.split("calls:")[0]  # the other tool is not allowed


def test_functions_of_a_namespace(thinking: Served) -> None:
    thinking.script(*say(OF_NAMESPACE))
    named = {"type": "function", "name": "lookup", "namespace": "mcp__dict"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "namespace", "name": "mcp__dict"}]}
    for choice in ("required", named, {"type": "function", "name": "lookup"}, allowed):
        response = responses(thinking, NAMESPACE, tool_choice=choice)
        [item] = response.json()["output"]
        assert (item["type"], item["namespace"], item["name"]) == ("function_call", "mcp__dict", "lookup")
        assert json.loads(item["arguments"]) == {"word": "sun"} and response.json()["tools"] == [NAMESPACE]
        assert "<can>mcp__dict__lookup" in thinking.engine.submitted[-1][0]
    again = [
        {"role": "user", "content": "hi"},
        item,
        {"type": "function_call_output", "call_id": item["call_id"], "output": "ok"},
    ]
    responses(thinking, NAMESPACE, input=again)
    assert f'[mcp__dict__lookup {{"word": "sun"}} {item["call_id"]}]' in thinking.engine.submitted[-1][0]


WRONG: dict[str, tuple[Any, str]] = {
    "form": (custom(5), "tools[0].format"),
    "kind of form": (custom({"type": "xml"}), "tools[0].format"),
    "syntax": (custom({"type": "grammar", "syntax": "ebnf", "definition": "x"}), "tools[0].format.syntax"),
    "definition": (custom({"type": "grammar", "syntax": "lark"}), "tools[0].format.definition"),
    "grammar": (custom({"type": "grammar", "syntax": "lark", "definition": "start: x"}), "tools[0].format.definition"),
    "name": ({"type": "custom", "name": ""}, "tools[0].name"),
    "name of a namespace": ({"type": "namespace", "tools": []}, "tools[0].name"),
    "tools of a namespace": ({"type": "namespace", "name": "x", "tools": 5}, "tools[0].tools"),
    "tool of a namespace": ({"type": "namespace", "name": "x", "tools": [5]}, "tools[0].tools[0]"),
}


@pytest.mark.parametrize(("tool", "field"), WRONG.values(), ids=WRONG)
def test_a_wrong_tool(thinking: Served, tool: Any, field: str) -> None:
    response = thinking.http.post("/v1/responses", json={"input": "hi", "tools": [tool]})
    assert response.status_code == 400 and response.json()["error"]["param"] == field


FUNCTION = {"name": "weather", "parameters": PARAMETERS}
CUT = '<tool_call>\n{"name": "weather", "arguments": {'
FORCED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"},
    "/v1/responses": {"tools": [{"type": "function", **FUNCTION}], "tool_choice": "required"},
    "/v1/messages": {"tools": [{"name": "weather", "input_schema": PARAMETERS}], "tool_choice": {"type": "any"}},
}


@pytest.mark.parametrize("tokens", range(1, len(CUT) - 19))
@pytest.mark.parametrize("path", FORCED)
def test_a_forced_call_that_is_cut_off_is_no_content(thinking: Served, path: str, tokens: int) -> None:
    thinking.script(*say(CUT, 1))
    asked = {"messages": [{"role": "user", "content": "hi"}], "input": "hi", **FORCED[path], "temperature": 0}
    limit = {"max_output_tokens" if path == "/v1/responses" else "max_tokens": tokens}
    whole = thinking.http.post(path, json={**asked, **limit}).json()
    stream = thinking.http.post(path, json={**asked, **limit, "stream": True}).text
    assert "tool_call>" not in json.dumps(whole) + stream and "<tool" not in json.dumps(whole) + stream
    match path:
        case "/v1/chat/completions":
            [choice] = whole["choices"]
            assert choice["finish_reason"] == "length" and not choice["message"]["content"]
            assert '"finish_reason":"length"' in stream and '"content":"<' not in stream
        case "/v1/responses":
            assert whole["status"] == "incomplete" and '"status":"incomplete"' in stream
            assert all(not part["text"] for item in whole["output"] for part in item.get("content", ()))
        case _:
            assert whole["stop_reason"] == "max_tokens" and '"stop_reason":"max_tokens"' in stream
            assert all(not block.get("text") for block in whole["content"])
