"""Arguments written bare, not as JSON, each behind its key: how to read them, and what a tool's schema says about them."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from locallab.chat.deltas import CallArguments, CallStart, Delta
from locallab.chat.tools.format import Lark, NewId, Tool
from locallab.chat.tools.parsers.markup import Check, Ended, MarkupParser, Script


def properties(tool: Tool | None) -> Mapping[str, Any]:
    """The schemas of a tool's arguments by name."""
    found = tool.parameters.get("properties") if tool else None
    return found if isinstance(found, Mapping) else {}


def is_required(tool: Tool, key: str) -> bool:
    required = tool.parameters.get("required")
    return isinstance(required, list) and key in required


def is_text(schema: object) -> bool:
    """Whether a value of this schema is text; everything else is written as JSON."""
    if not isinstance(schema, Mapping):
        return False
    kind = schema.get("type")
    return kind == "string" or (isinstance(kind, list) and "string" in kind) or (kind is None and "enum" in schema)


def as_json(raw: str) -> str:
    """A value that should be JSON, as JSON: as it stands if it is, as text if it is not."""
    try:
        json.loads(raw)
    except ValueError:
        return json.dumps(raw, ensure_ascii=False)
    return raw.strip()


def value_grammar(tool: Tool, key: str, end: str, lark: Lark) -> str:
    """A bare value with its `end`, as a grammar node; any text with its end is the rule `bare`."""
    schema = properties(tool)[key]
    if not is_text(schema):
        return f"{lark.value(tool, schema)} {end}"
    return f"({' | '.join(json.dumps(str(choice)) for choice in schema['enum'])}) {end}" if "enum" in schema else "bare"


class BareCalls(MarkupParser):
    """Reads calls of such arguments; they come out as JSON, typed as the tool's schema says, text values as they arrive.

    A key stands between `key_begin` and `key_end`, its value ends at the first of `value_ends`, the arguments at `end`.
    """

    key_begin: ClassVar[str]
    key_end: ClassVar[str]
    value_ends: ClassVar[tuple[str, ...]]
    end: ClassVar[str]

    def __init__(self, tools: Sequence[Tool], new_id: NewId) -> None:
        super().__init__()
        self._tools = {tool.name: tool for tool in tools}
        self._new_id = new_id
        self._n_calls = 0

    @abc.abstractmethod
    def open_value(self) -> Script:
        """Takes what stands between a key and its value."""

    def call(self, name: str) -> Check:
        """Reads a call from its first key on; False: the answer has ended in it."""
        yield CallStart(self._n_calls, self._new_id(), name)
        yield self._piece("{")
        if not (yield from self._arguments(self._tools.get(name))):
            return False
        yield self._piece("}")
        self._n_calls += 1
        return True

    def _arguments(self, tool: Tool | None) -> Check:
        comma = ""
        while True:
            yield from self.skip_space()
            if not (yield from self.takes(self.key_begin)):
                return (yield from self.takes(self.end)) or not self.ended
            try:
                key = yield from self.until(self.key_end)
            except Ended:
                return False
            yield self._piece(f"{comma}{json.dumps(key)}: ")
            comma = ", "
            yield from self.open_value()
            if not (yield from (self._text() if is_text(properties(tool).get(key)) else self._value())):
                return False

    def _text(self) -> Check:
        yield self._piece('"')
        marker = yield from self.text_until(*self.value_ends, wrap=self._escaped)
        if marker:
            yield self._piece('"')
        return bool(marker)

    def _value(self) -> Check:
        try:
            raw = yield from self.until(self.value_ends[-1])
        except Ended as cut:
            yield self._piece(cut.rest)
            return False
        yield self._piece(as_json(raw.removesuffix("\n")))
        return True

    def _piece(self, text: str) -> Delta:
        return CallArguments(self._n_calls, text)

    def _escaped(self, text: str) -> Delta:
        return self._piece(json.dumps(text, ensure_ascii=False)[1:-1])
