"""Llama 3.1 to 3.3: an answer that is one JSON object, `{"name": ..., "parameters": {...}}`, perhaps after <|python_tag|>."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import Delta, Parser, Text
from locallab.chat.json_scanner import SPACE
from locallab.chat.tools.format import ARGUMENTS, NAME, Lark, NewId, Tool, ToolChoice, ToolFormat, call_id
from locallab.chat.tools.parsers.json_calls import JsonCalls, json_call

TAG = "<|python_tag|>"


class Llama3(ToolFormat):
    name: ClassVar[str] = "llama3"
    begin: ClassVar[str] = ""
    controls: ClassVar[tuple[str, ...]] = (TAG,)
    example: ClassVar[str] = f'{{"name": "{NAME}", "parameters": {ARGUMENTS}}}'

    def matches(self, template: str) -> bool:
        return (TAG in template or "ipython" in template) and "parameters" in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return Llama3Parser(new_id)

    def call(self, tool: Tool, lark: Lark) -> str:
        return json_call(tool, lark, "parameters")

    def between(self, lark: Lark) -> str:
        return ""

    def grammar(self, tools: Sequence[Tool], choice: ToolChoice, lark: Lark, text: str | None = None) -> str:
        calls = f"{self.calls(tools, choice, lark)}\ntagged: {lark.marker(TAG)}? calls"
        if choice.mode == "required":
            return f"{calls}\nanswer: tagged"
        return f"{calls}\nPROSE: /([^{{](?s:.*))?/\nanswer: {text or 'PROSE'} | tagged"


class Llama3Parser:
    """Parse an answer that begins with the tag or a brace as a call, or as text if it is not one."""

    def __init__(self, new_id: NewId) -> None:
        self._calls = JsonCalls(TAG, "", new_id)
        self._start = ""
        self._decided = False
        self._is_tagged = True  # whether the model wrote the tag, not this parser

    def feed(self, text: str) -> list[Delta]:
        if not self._decided:
            text, self._start = self._start + text, ""
            bare = text.lstrip(SPACE)
            if TAG.startswith(bare):
                self._start = text
                return []
            self._decided = True
            self._is_tagged = not bare.startswith("{")
            text = text if self._is_tagged else TAG + text
        return self._untagged(self._calls.feed(text))

    def finish(self) -> list[Delta]:
        rest = self._calls.feed(self._start) if self._start else []
        return rest + self._untagged(self._calls.finish())

    def _untagged(self, deltas: list[Delta]) -> list[Delta]:
        """Remove the tag that this parser put ahead of an object that is not a call. Mutates `deltas`."""
        for at, delta in enumerate(deltas):
            if not self._is_tagged and isinstance(delta, Text) and delta.text.startswith(TAG):
                self._is_tagged = True
                deltas[at] = Text(delta.text.removeprefix(TAG))
        return deltas
