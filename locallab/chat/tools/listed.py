"""Granite 3 and Phi-4-mini: `<|tool_call|>` and then a JSON array of calls; Phi closes it with `<|/tool_call|>`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import Parser
from locallab.chat.tools.format import Lark, NewId, Tool, call_id
from locallab.chat.tools.jsoncalls import JsonArray, JsonCalls

BEGIN = "<|tool_call|>"
END = "<|/tool_call|>"


class Granite(JsonArray):
    name: ClassVar[str] = "granite"
    begin: ClassVar[str] = BEGIN
    controls: ClassVar[tuple[str, ...]] = (BEGIN,)

    def matches(self, template: str) -> bool:
        return BEGIN in template and END not in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return JsonCalls(BEGIN, "", new_id, also=("<tool_call>",))


class Phi(Granite):
    name: ClassVar[str] = "phi"
    controls: ClassVar[tuple[str, ...]] = (BEGIN, END)

    def matches(self, template: str) -> bool:
        return BEGIN in template and END in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return JsonCalls(BEGIN, END, new_id)

    def end(self, lark: Lark) -> str:
        return f'"]" {lark.marker(END)}'
