"""Parser and grammar of calls written as JSON objects between markers, as most families do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from locallab.chat.deltas import CallArguments, CallStart, Delta, Text, held_back
from locallab.chat.json_scanner import SPACE, Malformed, ObjectScanner
from locallab.chat.tools.format import Lark, NewId, Tool, ToolFormat

NAME_KEYS = ("name",)
ARGUMENT_KEYS = ("arguments", "parameters")
BETWEEN = SPACE + ",[]"


def json_call(tool: Tool, lark: Lark, arguments: str = "arguments") -> str:
    """Return the grammar of `{"name": ..., "arguments": {...}}`."""
    head = json.dumps({"name": tool.name})[:-1] + f', "{arguments}": '
    return f'{json.dumps(head)} {lark.arguments(tool)} "}}"'


class JsonArray(ToolFormat):
    """A format whose calls are one JSON array after `begin`."""

    def call(self, tool: Tool, lark: Lark) -> str:
        return json_call(tool, lark)

    def opening(self, lark: Lark) -> str:
        return '"["'

    def between(self, lark: Lark) -> str:
        return '", "'

    def end(self, lark: Lark) -> str:
        return '"]"'


class _Call:
    """Parser of one object; name and arguments may come in either order."""

    def __init__(self, index: int, new_id: NewId) -> None:
        self._index = index
        self._new_id = new_id
        self._name = ""
        self._waiting = ""  # arguments that arrived before the name
        self._has_arguments = False
        self.started = False

    def take(self, key: str, text: str, last: bool) -> Iterator[Delta]:
        """Take a piece of the value of `key`. The call starts once its name is complete."""
        if key in NAME_KEYS and not self.started:
            self._name += text
            try:
                name = json.loads(self._name) if last else None
            except ValueError:
                return
            if isinstance(name, str) and name:
                self.started = True
                yield CallStart(self._index, self._new_id(), name)
                if self._waiting:
                    yield CallArguments(self._index, self._waiting)
        elif key in ARGUMENT_KEYS and text:
            self._has_arguments = True
            if self.started:
                yield CallArguments(self._index, text)
            else:
                self._waiting += text

    def end(self) -> Iterator[Delta]:
        if not self._has_arguments:
            yield CallArguments(self._index, "{}")


class JsonCalls:
    """Parse text with calls `begin {"name": ..., "arguments": {...}} end`: one object or several between the two, or an array.

    An empty `end` is the end of the answer; `also` are further texts that open calls. Text that turns out not to be a call is
    returned unchanged, with its markers.
    """

    def __init__(self, begin: str, end: str, new_id: NewId, also: Sequence[str] = ()) -> None:
        self._openers = (begin, *also)
        self._end = end
        self._new_id = new_id
        self._buffer = ""
        self._raw = ""  # read since the opener or the last call; it is text if no call follows
        self._n_frame = 0  # characters of it up to and including the object's brace
        self._inside = False
        self._scanner: ObjectScanner | None = None
        self._call = _Call(0, new_id)
        self._n_calls = 0

    def feed(self, text: str) -> list[Delta]:
        self._buffer += text
        return list(self._run())

    def finish(self) -> list[Delta]:
        deltas = list(self._run())
        cut_off = self._scanner is not None and self._call.started
        only_frame = not (self._raw + self._buffer).strip(BETWEEN)
        rest = "" if cut_off or (self._inside and only_frame) else self._raw + self._buffer
        self._raw = self._buffer = ""
        return deltas + ([Text(rest)] if rest else [])

    def _run(self) -> Iterator[Delta]:
        is_running = True
        while is_running and self._buffer:
            if self._scanner is not None:
                yield from self._object(self._scanner)
                continue
            if self._inside:
                text = self._between()
                is_running = text is not None
            else:
                text = self._text()
                is_running = self._inside
            if text:
                yield Text(text)

    def _text(self) -> str:
        """Take text up to the next opener; the beginning of a possible opener stays in the buffer."""
        found = [(at, opener) for opener in self._openers if (at := self._buffer.find(opener)) >= 0]
        if found:
            at, opener = min(found)
            self._inside, self._raw = True, opener
            text, self._buffer = self._buffer[:at], self._buffer[at + len(opener) :]
        else:
            cut = len(self._buffer) - held_back(self._buffer, *self._openers)
            text, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return text

    def _between(self) -> str | None:
        """Take one piece of the frame around objects; return what turns out to be text, or None to wait for more."""
        buffer = self._buffer
        if self._end and buffer.startswith(self._end):
            self._buffer = buffer[len(self._end) :]
            return self._leave(self._raw + self._end if self._raw else "")
        if buffer[0] == "{":
            self._scanner, self._call = ObjectScanner(), _Call(self._n_calls, self._new_id)
            self._n_frame = len(self._raw) + 1
            return ""
        if buffer[0] in BETWEEN:
            self._buffer = buffer[1:]
            self._raw += buffer[0] if self._raw else ""
            return ""
        if self._end.startswith(buffer) or any(opener.startswith(buffer) for opener in self._openers):
            return None
        return self._leave(self._raw)

    def _leave(self, text: str) -> str:
        self._inside, self._raw = False, ""
        return text

    def _object(self, scanner: ObjectScanner) -> Iterator[Delta]:
        text, self._buffer = self._buffer, ""
        self._raw += text
        try:
            for piece in scanner.feed(text):
                yield from self._call.take(piece.key, piece.text, piece.last)
        except Malformed:
            self._scanner = None
            raw = self._leave(self._raw)
            if self._call.started:
                self._buffer = scanner.rest
            else:  # text up to the brace; the text after it may hold a call
                self._buffer = raw[self._n_frame :]
                yield Text(raw[: self._n_frame])
            return
        if scanner.done:
            self._scanner = None
            self._buffer, self._raw = scanner.rest, self._raw[: len(self._raw) - len(scanner.rest)]
            if self._call.started:
                yield from self._call.end()
                self._n_calls += 1
                self._raw = ""
            else:
                yield Text(self._leave(self._raw))
