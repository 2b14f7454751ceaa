"""Hermes, Qwen2.5, Qwen3 and many models that copy them: each call is JSON between <tool_call> and </tool_call>."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import Parser
from locallab.chat.tools.format import JSON_CALL, Lark, NewId, Tool, ToolFormat, call_id
from locallab.chat.tools.parsers.json_calls import JsonCalls, json_call

BEGIN = "<tool_call>"
END = "</tool_call>"
OTHERS = ("<function=", "<arg_key>", "<invoke ", "<tool_calls>")
"""Markers of other formats that have BEGIN too."""


class Hermes(ToolFormat):
    name: ClassVar[str] = "hermes"
    begin: ClassVar[str] = BEGIN
    controls: ClassVar[tuple[str, ...]] = (BEGIN, END)
    example: ClassVar[str] = f"{BEGIN}\n{JSON_CALL}\n{END}"

    def matches(self, template: str) -> bool:
        return BEGIN in template and not any(other in template for other in OTHERS)

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return JsonCalls(BEGIN, END, new_id)

    def call(self, tool: Tool, lark: Lark) -> str:
        return f'"\\n" {json_call(tool, lark)} "\\n" {lark.marker(END)}'

    def between(self, lark: Lark) -> str:
        return f'"\\n" {lark.marker(BEGIN)}'
