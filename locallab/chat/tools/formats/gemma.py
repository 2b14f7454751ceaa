"""Gemma: `call:name{key:value}` between markers, with text between quote tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import Parser, Text
from locallab.chat.tools.format import NAME, Lark, NewId, Tool, ToolFormat, call_id
from locallab.chat.tools.parsers.bare_calls import is_required, is_text, properties
from locallab.chat.tools.parsers.markup import Ended, MarkupParser, Script

CALL = "call:"


class Gemma(ToolFormat):
    """Gemma 4."""

    name: ClassVar[str] = "gemma"
    begin: ClassVar[str] = "<|tool_call>"
    close: ClassVar[str] = "<tool_call|>"
    quote: ClassVar[str] = '<|"|>'
    controls: ClassVar[tuple[str, ...]] = ("<|tool_call>", "<tool_call|>", '<|"|>')
    example: ClassVar[str] = f'<|tool_call>{CALL}{NAME}{{<argument>:<|"|><its text><|"|>}}<tool_call|>'

    def matches(self, template: str) -> bool:
        return self.begin in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return GemmaCalls(self.begin, self.close, self.quote, new_id)

    def rules(self, lark: Lark) -> Sequence[str]:
        return ("BARE: /(?s:.*)/", lark.text_until("quoted", self.quote).replace("TEXT", "BARE"))

    def call(self, tool: Tool, lark: Lark) -> str:
        required_first = sorted(properties(tool).items(), key=lambda item: not is_required(tool, item[0]))
        arguments: list[str] = []
        for key, schema in required_first:
            value = (
                f"{lark.marker(self.quote)} {lark.text_of(tool, self.quote, 'quoted')}"
                if is_text(schema)
                else lark.value(tool, schema)
            )
            argument = f"{json.dumps((',' if arguments else '') + key + ':')} {value}"
            arguments.append(argument if is_required(tool, key) else f"({argument})?")
        return f'{json.dumps(f"{CALL}{tool.name}{{")} {" ".join(arguments)} "}}" {lark.marker(self.close)}'


class FunctionGemma(Gemma):
    name: ClassVar[str] = "function-gemma"
    begin: ClassVar[str] = "<start_function_call>"
    close: ClassVar[str] = "<end_function_call>"
    quote: ClassVar[str] = "<escape>"
    controls: ClassVar[tuple[str, ...]] = ("<start_function_call>", "<end_function_call>", "<escape>")
    example: ClassVar[str] = f"<start_function_call>{CALL}{NAME}{{<argument>:<escape><its text><escape>}}<end_function_call>"


class GemmaCalls(MarkupParser):
    """Parse Gemma's calls; the arguments are emitted as JSON in one piece."""

    def __init__(self, begin: str, close: str, quote: str, new_id: NewId) -> None:
        super().__init__(new_id)
        self._begin = begin
        self._close = close
        self._quote = quote

    def script(self) -> Script:
        while (yield from self.text_until(self._begin)):
            try:
                raw = yield from self.until(self._close)
            except Ended as cut:
                yield Text(self._begin + cut.rest)
                return
            name, _, arguments = raw.strip().removeprefix(CALL).partition("{")
            yield self.call_start(name.strip())
            yield self.call_arguments(as_object("{" + arguments, self._quote))
            self.n_calls += 1


def as_object(raw: str, quote: str) -> str:
    """Convert an object in Gemma's notation to JSON."""
    parts = raw.split(quote)
    bare = [re.sub(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:", r'\1"\2":', part) for part in parts[::2]]
    texts = [json.dumps(part, ensure_ascii=False) for part in parts[1::2]]
    return "".join(piece for pair in zip(bare, [*texts, ""], strict=False) for piece in pair)
