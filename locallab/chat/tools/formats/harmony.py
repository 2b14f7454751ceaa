"""gpt-oss: harmony. Every part of an answer is a message with a channel: analysis, commentary (calls), final."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import CallArguments, CallStart, Delta, Parser, Reasoning, Text
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
        """One call ends the turn."""
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
    """Reads the messages one after the other. What has no header at all is text."""

    def __init__(self, new_id: NewId) -> None:
        super().__init__()
        self._new_id = new_id
        self._n_calls = 0

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
                yield from self._message(header)
            yield from self.skip_space()

    def _message(self, header: str) -> Script:
        recipient = re.search(r"to=([^\s<]+)", header)
        if recipient is not None:
            yield CallStart(self._n_calls, self._new_id(), recipient[1].removeprefix(FUNCTIONS))
            yield from self.text_until(END, CALL, START, wrap=self._piece)
            self._n_calls += 1
            return
        channel = re.search(r"<\|channel\|>\s*(\w+)", header)
        is_thought = channel is not None and channel[1] == "analysis"
        yield from self.text_until(END, RETURN, wrap=Reasoning if is_thought else Text)

    def _piece(self, text: str) -> Delta:
        return CallArguments(self._n_calls, text)
