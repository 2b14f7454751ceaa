"""A JSON array of calls after a marker: `<|tool_call|>` for Granite 3 and Phi-4-mini, which closes it with `<|/tool_call|>`;
`<tool_calls>` and `</tool_calls>` for Apriel; `functools` for Firefunction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import Parser
from locallab.chat.tools.format import JSON_CALL, Lark, NewId, Tool, call_id
from locallab.chat.tools.parsers.json_calls import JsonArray, JsonCalls

BEGIN = "<|tool_call|>"
END = "<|/tool_call|>"


class Granite(JsonArray):
    name: ClassVar[str] = "granite"
    begin: ClassVar[str] = BEGIN
    controls: ClassVar[tuple[str, ...]] = (BEGIN,)
    example: ClassVar[str] = f"{BEGIN}[{JSON_CALL}]"

    def matches(self, template: str) -> bool:
        return BEGIN in template and END not in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return JsonCalls(BEGIN, "", new_id, also=("<tool_call>",))


class Phi(Granite):
    name: ClassVar[str] = "phi"
    controls: ClassVar[tuple[str, ...]] = (BEGIN, END)
    example: ClassVar[str] = f"{BEGIN}[{JSON_CALL}]{END}"

    def matches(self, template: str) -> bool:
        return BEGIN in template and END in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return JsonCalls(BEGIN, END, new_id)

    def end(self, lark: Lark) -> str:
        return f'"]" {lark.marker(END)}'


class Apriel(JsonArray):
    name: ClassVar[str] = "apriel"
    begin: ClassVar[str] = "<tool_calls>"
    close: ClassVar[str] = "</tool_calls>"
    controls: ClassVar[tuple[str, ...]] = ("<tool_calls>", "</tool_calls>")
    example: ClassVar[str] = f"<tool_calls>[{JSON_CALL}]</tool_calls>"

    def matches(self, template: str) -> bool:
        return f"{self.begin}[" in template and self.close in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return JsonCalls(self.begin, self.close, new_id)

    def end(self, lark: Lark) -> str:
        return f'"]" {lark.marker(self.close)}'


class Firefunction(JsonArray):
    """Its marker is plain text, and the name of a Python module: the bracket belongs to it."""

    name: ClassVar[str] = "firefunction"
    begin: ClassVar[str] = "functools["
    example: ClassVar[str] = f"functools[{JSON_CALL}]"

    def matches(self, template: str) -> bool:
        return self.begin in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return JsonCalls(self.begin, "", new_id)

    def opening(self, lark: Lark) -> str:
        return ""
