"""Tools, and calls of them in every format."""

from __future__ import annotations

import dataclasses
from typing import Any

from locallab.chat.tools import Tool

NOW: tuple[str, dict[str, Any]] = ("time", {})
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
WEATHER = Tool(
    "weather",
    "Tells the weather",
    {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
)
TIME = Tool("time")
TOOLS = (WEATHER, TIME)
OSLO = ("weather", {"city": 'Oslo "S"', "days": 3})


@dataclasses.dataclass(frozen=True)
class Case:
    """A model's output, and its meaning. `cut`: the answer ends in the middle of a call."""

    raw: str
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    text: str = ""
    reasoning: str = ""
    cut: bool = False


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
    "firefunction": (
        'functools[{"name": ...}] {{ functions }}',
        [
            Case("Import functools.", text="Import functools."),
            Case(f"functools[{JSON}, {JSON_TIME}]", (OSLO, NOW)),
        ],
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
