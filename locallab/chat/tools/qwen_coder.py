"""Qwen3-Coder and its kin: a call is XML, `<tool_call><function=name><parameter=key>value</parameter>...`, values are bare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import CallArguments, CallStart, Delta, Parser, Text
from locallab.chat.tools.bare import as_json, is_required, is_text, properties
from locallab.chat.tools.format import Lark, NewId, Tool, ToolFormat, call_id
from locallab.chat.tools.scanning import Check, Ended, MarkupParser, Script

BEGIN = "<tool_call>"
END = "</tool_call>"
FUNCTION = "<function="
FUNCTION_END = "</function>"
PARAMETER = "<parameter="
PARAMETER_END = "</parameter>"
NEWLINE = '"\n"'


class QwenCoder(ToolFormat):
    name: ClassVar[str] = "qwen-coder"
    begin: ClassVar[str] = BEGIN
    controls: ClassVar[tuple[str, ...]] = (BEGIN, END)

    def matches(self, template: str) -> bool:
        return BEGIN in template and FUNCTION in template and PARAMETER in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return XmlCalls(tools, new_id)

    def rules(self, lark: Lark) -> Sequence[str]:
        return ("BARE: /(?s:.*)/", f"bare[lazy]: BARE {json.dumps(PARAMETER_END)}")

    def call(self, tool: Tool, lark: Lark) -> str:
        parameters = " ".join(self._parameter(tool, key, lark) for key in properties(tool))
        head = json.dumps(f"\n{FUNCTION}{tool.name}>\n")
        return f"{head} {parameters} {json.dumps(FUNCTION_END)} {NEWLINE} {lark.marker(END)}"

    def between(self, lark: Lark) -> str:
        return f"{NEWLINE} {lark.marker(BEGIN)}"

    def _parameter(self, tool: Tool, key: str, lark: Lark) -> str:
        schema = properties(tool)[key]
        end = json.dumps(f"\n{PARAMETER_END}")
        if is_text(schema) and "enum" in schema:
            value = f"({' | '.join(json.dumps(str(choice)) for choice in schema['enum'])}) {end}"
        elif is_text(schema):
            value = "bare"
        else:
            value = f"{lark.value(tool, schema)} {end}"
        written = f"{json.dumps(f'{PARAMETER}{key}>{chr(10)}')} {value} {NEWLINE}"
        return written if is_required(tool, key) else f"({written})?"


NEWLINE = '"\\n"'


class XmlCalls(MarkupParser):
    """Reads such calls; the arguments come out as JSON, typed as the tool's schema says, text values as they arrive."""

    def __init__(self, tools: Sequence[Tool], new_id: NewId) -> None:
        super().__init__()
        self._tools = {tool.name: tool for tool in tools}
        self._new_id = new_id
        self._n_calls = 0

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
            yield CallStart(self._n_calls, self._new_id(), name.strip())
            yield self._piece("{")
            if not (yield from self._parameters(self._tools.get(name.strip()))):
                return
            yield self._piece("}")
            self._n_calls += 1
            yield from self.skip_space()
            yield from self.takes(END)

    def _parameters(self, tool: Tool | None) -> Check:
        """Reads the parameters; False: the answer has ended among them."""
        comma = ""
        while True:
            yield from self.skip_space()
            if not (yield from self.takes(PARAMETER)):
                return (yield from self.takes(FUNCTION_END)) or not self.ended
            try:
                key = yield from self.until(">")
            except Ended:
                return False
            yield self._piece(f"{comma}{json.dumps(key)}: ")
            comma = ", "
            yield from self.takes("\n")
            if not (yield from (self._text() if is_text(properties(tool).get(key)) else self._value())):
                return False

    def _text(self) -> Check:
        yield self._piece('"')
        marker = yield from self.text_until(f"\n{PARAMETER_END}", PARAMETER_END, wrap=self._escaped)
        if marker:
            yield self._piece('"')
        return bool(marker)

    def _value(self) -> Check:
        try:
            raw = yield from self.until(PARAMETER_END)
        except Ended as cut:
            yield self._piece(cut.rest)
            return False
        yield self._piece(as_json(raw.removesuffix("\n")))
        return True

    def _piece(self, text: str) -> Delta:
        return CallArguments(self._n_calls, text)

    def _escaped(self, text: str) -> Delta:
        return self._piece(json.dumps(text, ensure_ascii=False)[1:-1])
