"""Qwen3-Coder and its kin: calls are XML with bare values, `<tool_call><function=name><parameter=key>value</parameter>...`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import Parser, Text
from locallab.chat.tools.format import NAME, Lark, NewId, Tool, ToolFormat, call_id
from locallab.chat.tools.parsers.bare_calls import BareCalls, is_required, properties, value_grammar
from locallab.chat.tools.parsers.markup import Ended, Script

BEGIN = "<tool_call>"
END = "</tool_call>"
FUNCTION = "<function="
FUNCTION_END = "</function>"
PARAMETER = "<parameter="
PARAMETER_END = "</parameter>"
NEWLINE = '"\\n"'


class QwenCoder(ToolFormat):
    name: ClassVar[str] = "qwen-coder"
    begin: ClassVar[str] = BEGIN
    controls: ClassVar[tuple[str, ...]] = (BEGIN, END)
    example: ClassVar[str] = (
        f"{BEGIN}\n{FUNCTION}{NAME}>\n{PARAMETER}<name of an argument>>\n<its value>\n{PARAMETER_END}\n{FUNCTION_END}\n{END}"
    )

    def matches(self, template: str) -> bool:
        return BEGIN in template and FUNCTION in template and PARAMETER in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return XmlCalls(tools, new_id)

    def rules(self, lark: Lark) -> Sequence[str]:
        return ("BARE: /(?s:.*)/", f"bare[lazy]: BARE {json.dumps(PARAMETER_END)}")

    def call(self, tool: Tool, lark: Lark) -> str:
        parameters = []
        for key in properties(tool):
            value = value_grammar(tool, key, f"\n{PARAMETER_END}", lark)
            parameter = f"{json.dumps(f'{PARAMETER}{key}>{chr(10)}')} {value} {NEWLINE}"
            parameters.append(parameter if is_required(tool, key) else f"({parameter})?")
        head = json.dumps(f"\n{FUNCTION}{tool.name}>\n")
        return f"{head} {' '.join(parameters)} {json.dumps(FUNCTION_END)} {NEWLINE} {lark.marker(END)}"

    def between(self, lark: Lark) -> str:
        return f"{NEWLINE} {lark.marker(BEGIN)}"


class XmlCalls(BareCalls):
    key_begin: ClassVar[str] = PARAMETER
    key_end: ClassVar[str] = ">"
    value_ends: ClassVar[tuple[str, ...]] = (f"\n{PARAMETER_END}", PARAMETER_END)
    end: ClassVar[str] = FUNCTION_END

    def script(self) -> Script:
        while (yield from self.text_until(BEGIN)):
            space = yield from self.skip_space()
            if not (yield from self.takes(FUNCTION)):
                yield Text(BEGIN + space)
                continue
            try:
                name = yield from self.until(">")
            except Ended as cut:
                yield Text(BEGIN + space + FUNCTION + cut.rest)
                return
            if not (yield from self.call(name.strip())):
                return
            yield from self.skip_space()
            yield from self.takes(END)

    def open_value(self) -> Script:
        yield from self.takes("\n")
