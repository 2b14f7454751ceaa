"""Functionary: `<function=name>{...}</function>` (3.1), or each part of the answer after its recipient, `>>>name` (3.2)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import Parser, Text
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
    """The prompt ends with `>>>`, so an answer begins with the first recipient."""

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
        message = f'"{EVERYBODY}\\n" {text or "TEXT"}'
        if not tools:
            return f"answer: {message}\n{TEXT}"
        calls = self.calls(tools, choice, lark)
        if choice.mode == "required":
            return f"{calls}\nanswer: calls"
        lead = f'"{EVERYBODY}\\n" talk calls' if text is None else "calls"
        return "\n".join([calls, TEXT, lark.text_until("talk", RECIPIENT), f"answer: {message} | calls | {lead}"])


class RecipientParser(MarkupParser):
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
            yield self.call_start(recipient.strip())
            if not (yield from self.json_arguments()):
                return
            self.n_calls += 1
            yield from self.skip_space()
            more = yield from self.takes(RECIPIENT)
