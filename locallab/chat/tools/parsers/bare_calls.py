"""Parser and grammar of calls whose arguments are bare values behind their keys, not JSON."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from locallab.chat.deltas import Delta
from locallab.chat.tools.format import Lark, NewId, Tool
from locallab.chat.tools.parsers.markup import Check, Ended, MarkupParser, Script


def properties(tool: Tool | None) -> Mapping[str, Any]:
    """Return the schemas of a tool's arguments by name."""
    found = tool.parameters.get("properties") if tool else None
    return found if isinstance(found, Mapping) else {}


def is_required(tool: Tool, key: str) -> bool:
    required = tool.parameters.get("required")
    return isinstance(required, list) and key in required


def is_text(schema: object) -> bool:
    """Return whether a value of this schema is text; all others are written as JSON."""
    if not isinstance(schema, Mapping):
        return False
    kind = schema.get("type")
    return kind == "string" or (isinstance(kind, list) and "string" in kind) or (kind is None and "enum" in schema)


def as_json(raw: str) -> str:
    """Return the value unchanged if it is valid JSON, else as a JSON string."""
    try:
        json.loads(raw)
    except ValueError:
        return json.dumps(raw, ensure_ascii=False)
    return raw.strip()


def value_grammar(tool: Tool, key: str, marker: str, lark: Lark) -> str:
    """Return a bare value with the marker at its end as a grammar node. The grammar must define `bare`, any text with it."""
    schema, end = properties(tool)[key], lark.marker(marker)
    if not is_text(schema):
        return f"{lark.value(tool, schema)} {end}"
    if "enum" in schema:
        return f"({' | '.join(json.dumps(str(choice)) for choice in schema['enum'])}) {end}"
    return lark.text_of(tool, marker, "bare")


class BareCalls(MarkupParser):
    """Parse calls with bare arguments into JSON, typed by the tool's schema; text values are streamed.

    A key is between `key_begin` and `key_end`; its value ends at the first of `value_ends`, the arguments at `end`.
    """

    key_begin: ClassVar[str]
    key_end: ClassVar[str]
    value_ends: ClassVar[tuple[str, ...]]
    end: ClassVar[str]

    def __init__(self, tools: Sequence[Tool], new_id: NewId) -> None:
        super().__init__(new_id)
        self._tools = {tool.name: tool for tool in tools}

    @abc.abstractmethod
    def open_value(self) -> Script:
        """Drop the markup between a key and its value."""

    def call(self, name: str) -> Check:
        """Parse a call from its first key on; return False if the answer ends inside it."""
        yield self.call_start(name)
        yield self.call_arguments("{")
        schemas = properties(self._tools.get(name))
        comma = ""
        while True:
            yield from self.skip_space()
            if not (yield from self.takes(self.key_begin)):
                break
            try:
                key = yield from self.until(self.key_end)
            except Ended:
                return False
            yield self.call_arguments(f"{comma}{json.dumps(key)}: ")
            comma = ", "
            yield from self.open_value()
            if not (yield from self._value(schemas.get(key))):
                return False
        is_closed = yield from self.takes(self.end)
        if self.ended and not is_closed:
            return False
        yield self.call_arguments("}")
        self.n_calls += 1
        return True

    def _value(self, schema: object) -> Check:
        """Parse a value; return False if the answer ends inside it."""
        if is_text(schema):
            yield self.call_arguments('"')
            marker = yield from self.text_until(*self.value_ends, wrap=self._escaped)
            if marker:
                yield self.call_arguments('"')
            return bool(marker)
        try:
            raw = yield from self.until(self.value_ends[-1])
        except Ended as cut:
            yield self.call_arguments(cut.rest)
            return False
        yield self.call_arguments(as_json(raw.removesuffix("\n")))
        return True

    def _escaped(self, text: str) -> Delta:
        return self.call_arguments(json.dumps(text, ensure_ascii=False)[1:-1])
