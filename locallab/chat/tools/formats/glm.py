"""GLM 4.5 and later, and models that copy it: `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value>...` with bare
values; some put each part on its own line."""

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
KEY = "<arg_key>"
KEY_END = "</arg_key>"
VALUE = "<arg_value>"
VALUE_END = "</arg_value>"
MAYBE_NEWLINE = '"\\n"?'


class Glm(ToolFormat):
    name: ClassVar[str] = "glm"
    begin: ClassVar[str] = BEGIN
    controls: ClassVar[tuple[str, ...]] = (BEGIN, END, KEY, KEY_END, VALUE, VALUE_END)
    example: ClassVar[str] = f"{BEGIN}{NAME}{KEY}<name of an argument>{KEY_END}{VALUE}<its value>{VALUE_END}{END}"

    def matches(self, template: str) -> bool:
        return BEGIN in template and KEY in template and VALUE in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return GlmCalls(tools, new_id)

    def rules(self, lark: Lark) -> Sequence[str]:
        return ("BARE: /(?s:.*)/", lark.text_until("bare", VALUE_END).replace("TEXT", "BARE"))

    def call(self, tool: Tool, lark: Lark) -> str:
        arguments = []
        for key in properties(tool):
            value = value_grammar(tool, key, VALUE_END, lark)
            name = f"{lark.marker(KEY)} {json.dumps(key)} {lark.marker(KEY_END)}"
            argument = f"{name} {MAYBE_NEWLINE} {lark.marker(VALUE)} {value} {MAYBE_NEWLINE}"
            arguments.append(argument if is_required(tool, key) else f"({argument})?")
        return f"{json.dumps(tool.name)} {MAYBE_NEWLINE} {' '.join(arguments)} {lark.marker(END)}"

    def between(self, lark: Lark) -> str:
        return f"{MAYBE_NEWLINE} {lark.marker(BEGIN)}"


class GlmCalls(BareCalls):
    key_begin: ClassVar[str] = KEY
    key_end: ClassVar[str] = KEY_END
    value_ends: ClassVar[tuple[str, ...]] = (VALUE_END,)
    end: ClassVar[str] = END

    def script(self) -> Script:
        while (yield from self.text_until(BEGIN)):
            try:
                name = yield from self.before(KEY, END)
            except Ended as cut:
                yield Text(BEGIN + cut.rest)
                return
            if not (yield from self.call(name.strip())):
                return

    def open_value(self) -> Script:
        yield from self.skip_space()
        yield from self.takes(VALUE)
