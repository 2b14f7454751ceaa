"""Mistral: `[TOOL_CALLS]name[ARGS]{...}` since 2025, `[TOOL_CALLS][{"name": ..., "arguments": {...}}]` before."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.deltas import Parser
from locallab.chat.tools.format import ARGUMENTS, JSON_CALL, NAME, Lark, NewId, Tool, ToolFormat
from locallab.chat.tools.parsers.json_calls import JsonArray, JsonCalls
from locallab.chat.tools.parsers.named_calls import NamedCalls

CALLS = "[TOOL_CALLS]"
ARGS = "[ARGS]"
CALL_ID = "[CALL_ID]"


def mistral_id() -> str:
    """Return nine letters and digits: the templates refuse other ids."""
    return "".join(random.choices(string.ascii_letters + string.digits, k=9))


class Mistral(ToolFormat):
    name: ClassVar[str] = "mistral"
    begin: ClassVar[str] = CALLS
    controls: ClassVar[tuple[str, ...]] = (CALLS, ARGS, CALL_ID)
    example: ClassVar[str] = f"{CALLS}{NAME}{ARGS}{ARGUMENTS}"

    def matches(self, template: str) -> bool:
        return CALLS in template and ARGS in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = mistral_id) -> Parser:
        return MistralCalls(CALLS, ARGS, new_id)

    def call(self, tool: Tool, lark: Lark) -> str:
        return f"{json.dumps(tool.name)} {lark.marker(ARGS)} {lark.arguments(tool)}"


class MistralCalls(NamedCalls):
    """NamedCalls in which some models write an id between name and arguments."""

    def name_of(self, raw: str) -> str:
        return raw.partition(CALL_ID)[0].strip()


class MistralArray(JsonArray):
    name: ClassVar[str] = "mistral-array"
    begin: ClassVar[str] = CALLS
    controls: ClassVar[tuple[str, ...]] = (CALLS,)
    example: ClassVar[str] = f"{CALLS}[{JSON_CALL}]"

    def matches(self, template: str) -> bool:
        return CALLS in template and ARGS not in template

    def parser(self, tools: Sequence[Tool], new_id: NewId = mistral_id) -> Parser:
        return JsonCalls(CALLS, "", new_id)
