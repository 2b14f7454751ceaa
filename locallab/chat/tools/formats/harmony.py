"""gpt-oss: harmony. Each part of an answer is a message with a channel: analysis, commentary (calls) or final."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import Parser, Reasoning, Text
from locallab.chat.tools.format import ARGUMENTS, NAME, TEXT, Lark, NewId, Tool, ToolChoice, ToolFormat, call_id
from locallab.chat.tools.parsers.markup import Ended, MarkupParser, Script

START = "<|start|>"
CHANNEL = "<|channel|>"
CONSTRAIN = "<|constrain|>"
MESSAGE = "<|message|>"
END = "<|end|>"
CALL = "<|call|>"
RETURN = "<|return|>"
FUNCTIONS = "functions."


class Harmony(ToolFormat):
    name: ClassVar[str] = "harmony"
    begin: ClassVar[str] = CHANNEL
    controls: ClassVar[tuple[str, ...]] = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
    example: ClassVar[str] = f"{CHANNEL}commentary to={FUNCTIONS}{NAME} {CONSTRAIN}json{MESSAGE}{ARGUMENTS}{CALL}"
    whole: ClassVar[bool] = True
    lead: ClassVar[str] = f"{CHANNEL}final{MESSAGE}"

    def matches(self, template: str) -> bool:
        return CHANNEL in template and MESSAGE in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return HarmonyParser(new_id)

    def call(self, tool: Tool, lark: Lark) -> str:
        head = json.dumps(f"commentary to={FUNCTIONS}{tool.name} ")
        return f'{lark.marker(CHANNEL)} {head} {lark.marker(CONSTRAIN)} "json" {lark.marker(MESSAGE)} {lark.arguments(tool)}'

    def between(self, lark: Lark) -> str:
        """Return nothing: a call ends the turn."""
        return ""

    def grammar(self, tools: Sequence[Tool], choice: ToolChoice, lark: Lark, text: str | None = None) -> str:
        channel, message = lark.marker(CHANNEL), lark.marker(MESSAGE)
        rules = [
            TEXT,
            lark.text_until("thought", END),
            f'analysis: {channel} "analysis" {message} thought {lark.marker(START)} "assistant"',
            f'final: {channel} "final" {message} {text or "TEXT"}',
        ]
        if not tools:
            return "\n".join([*rules, "answer: analysis* final"])
        calls = self.calls(tools, choice, lark)
        return "\n".join([*rules, calls, f"answer: analysis* {'calls' if choice.mode == 'required' else '(calls | final)'}"])


class HarmonyParser(MarkupParser):
    """Parse the messages one after the other; a part without a header is text."""

    def script(self) -> Script:
        yield from self.skip_space()
        while self.buffer:
            if not any(start.startswith(self.buffer) or self.buffer.startswith(start) for start in (START, CHANNEL)):
                yield from self.text_until(END, CALL, RETURN)
            elif self.buffer in START + CHANNEL and not self.ended:
                yield None
                continue
            else:
                try:
                    header = yield from self.until(MESSAGE)
                except Ended as cut:
                    yield Text(cut.rest)
                    return
                if recipient := re.search(r"to=([^\s<]+)", header):
                    yield self.call_start(recipient[1].removeprefix(FUNCTIONS))
                    yield from self.text_until(END, CALL, START, wrap=self.call_arguments)
                    self.n_calls += 1
                else:
                    channel = re.search(r"<\|channel\|>\s*(\w+)", header)
                    is_reasoning = channel is not None and channel[1] == "analysis"
                    yield from self.text_until(END, RETURN, wrap=Reasoning if is_reasoning else Text)
            yield from self.skip_space()
