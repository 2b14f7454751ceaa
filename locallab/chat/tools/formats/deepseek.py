"""DeepSeek V3.1 and later: `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜>`, all calls inside one frame.
R1 and V3 write `function<｜tool▁sep｜>name` and put the arguments in a code fence."""  # noqa: RUF002

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import Parser
from locallab.chat.tools.format import ARGUMENTS, NAME, Lark, NewId, Tool, ToolFormat, call_id
from locallab.chat.tools.parsers.named_calls import NamedCalls

CALLS = "<｜tool▁calls▁begin｜>"  # noqa: RUF001
CALLS_END = "<｜tool▁calls▁end｜>"  # noqa: RUF001
CALL = "<｜tool▁call▁begin｜>"  # noqa: RUF001
CALL_END = "<｜tool▁call▁end｜>"  # noqa: RUF001
SEPARATOR = "<｜tool▁sep｜>"  # noqa: RUF001
FENCE = "```json"


class DeepSeek(ToolFormat):
    name: ClassVar[str] = "deepseek"
    begin: ClassVar[str] = CALLS
    controls: ClassVar[tuple[str, ...]] = (CALLS, CALLS_END, CALL, CALL_END, SEPARATOR)
    example: ClassVar[str] = f"{CALLS}{CALL}{NAME}{SEPARATOR}{ARGUMENTS}{CALL_END}{CALLS_END}"

    def matches(self, template: str) -> bool:
        return CALLS in template and FENCE not in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return NamedCalls(CALL, SEPARATOR, new_id, end=CALL_END, frame=(CALLS, CALLS_END))

    def call(self, tool: Tool, lark: Lark) -> str:
        head = f"{lark.marker(CALL)} {json.dumps(tool.name)} {lark.marker(SEPARATOR)}"
        return f"{head} {lark.arguments(tool)} {lark.marker(CALL_END)}"

    def between(self, lark: Lark) -> str:
        return '""'

    def end(self, lark: Lark) -> str:
        return lark.marker(CALLS_END)


class DeepSeekR1(DeepSeek):
    name: ClassVar[str] = "deepseek-r1"
    example: ClassVar[str] = f"{CALLS}{CALL}function{SEPARATOR}{NAME}\n{FENCE}\n{ARGUMENTS}\n```{CALL_END}{CALLS_END}"

    def matches(self, template: str) -> bool:
        return CALLS in template and FENCE in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        return NamedCalls(f"{CALL}function{SEPARATOR}", "\n", new_id, end=CALL_END, frame=(CALLS, CALLS_END))

    def call(self, tool: Tool, lark: Lark) -> str:
        head = f'{lark.marker(CALL)} "function" {lark.marker(SEPARATOR)} {json.dumps(f"{tool.name}{chr(10)}{FENCE}{chr(10)}")}'
        return f'{head} {lark.arguments(tool)} "\\n```" {lark.marker(CALL_END)}'

    def between(self, lark: Lark) -> str:
        return '"\\n"'
