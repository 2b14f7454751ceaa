"""Functionary: `<function=name>{...}</function>` (3.1), or every part of the answer under its recipient, `>>>name` (3.2)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import CallArguments, CallStart, Delta, Parser, Text
from locallab.chat.tools.format import ARGUMENTS, NAME, TEXT, Lark, NewId, Tool, ToolChoice, ToolFormat, call_id
from locallab.chat.tools.parsers.markup import Ended, MarkupParser, Script
from locallab.chat.tools.parsers.named_calls import NamedCalls

FUNCTION = "<function="
FUNCTION_END = "</function>"
RECIPIENT = ">>>"
EVERYBODY = "all"


class FunctionTags(ToolFormat):
    name: ClassVar[str] = "function-tags"
    begin: ClassVar[str] = FUNCTION
    example: ClassVar[str] = f"{FUNCTION}{NAME}>{ARGUMENTS}{FUNCTION_END}"

    def matches(self, template: str) -> bool:
        return FUNCTION in template and FUNCTION_END in template and "tool_call>" not in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return NamedCalls(FUNCTION, ">", new_id, end=FUNCTION_END)

    def call(self, tool: Tool, lark: Lark) -> str:
        return f"{json.dumps(f'{tool.name}>')} {lark.arguments(tool)} {json.dumps(FUNCTION_END)}"


class Recipients(ToolFormat):
    """The prompt has written `>>>` already, so an answer begins with the first recipient."""

    name: ClassVar[str] = "recipients"
    begin: ClassVar[str] = ""
    example: ClassVar[str] = f"{RECIPIENT}{NAME}\n{ARGUMENTS}"
    whole: ClassVar[bool] = True
    lead: ClassVar[str] = f"{EVERYBODY}\n"

    def matches(self, template: str) -> bool:
        return f"{RECIPIENT}{EVERYBODY}" in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return RecipientParser(new_id)

    def call(self, tool: Tool, lark: Lark) -> str:
        return f"{json.dumps(tool.name + chr(10))} {lark.arguments(tool)}"

    def between(self, lark: Lark) -> str:
        return json.dumps(f"\n{RECIPIENT}")

    def grammar(self, tools: Sequence[Tool], choice: ToolChoice, lark: Lark, text: str | None = None) -> str:
        said = f'"{EVERYBODY}\\n" {text or "TEXT"}'
        if not tools:
            return f"answer: {said}\n{TEXT}"
        calls = self.calls(tools, choice, lark)
        if choice.mode == "required":
            return f"{calls}\nanswer: calls"
        lead = f'"{EVERYBODY}\\n" talk calls' if text is None else "calls"
        return "\n".join([calls, TEXT, lark.text_until("talk", RECIPIENT), f"answer: {said} | calls | {lead}"])


class RecipientParser(MarkupParser):
    def __init__(self, new_id: NewId) -> None:
        super().__init__()
        self._new_id = new_id
        self._n_calls = 0

    def script(self) -> Script:
        more = True
        while more:
            try:
                recipient = yield from self.until("\n")
            except Ended as cut:
                yield Text(cut.rest)
                return
            if recipient.strip() == EVERYBODY:
                more = bool((yield from self.text_until(f"\n{RECIPIENT}", RECIPIENT)))
                continue
            yield CallStart(self._n_calls, self._new_id(), recipient.strip())
            if not (yield from self.json_value(self._piece)):
                return
            self._n_calls += 1
            yield from self.skip_space()
            more = yield from self.takes(RECIPIENT)

    def _piece(self, text: str) -> Delta:
        return CallArguments(self._n_calls, text)
