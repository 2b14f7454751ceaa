"""JSON that arrives in pieces: an object's members, their raw values handed on as they come. Checks no more than it needs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

SPACE = " \t\r\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Raw text of the value of `key`; the last piece of a value has `last` set."""

    key: str
    text: str
    last: bool = False


class Malformed(ValueError):
    """What came is no JSON object."""


class ValueScanner:
    """Finds where one JSON value ends. It trusts what is inside: only strings and nesting matter. `begun`: not only space."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.begun = False
        self.done = False

    def feed(self, text: str) -> int:
        """How many characters of `text` belong to the value; `done` when it has ended."""
        for at, char in enumerate(text):
            if self._ends_before(char):
                self.done = True
                return at
            self._take(char)
            if self.done:
                return at + 1
        return len(text)

    def _ends_before(self, char: str) -> bool:
        """A number or a word ends where something else begins."""
        return self.begun and not self._in_string and self._depth == 0 and (char in ",}]" or char in SPACE)

    def _take(self, char: str) -> None:
        self.begun = self.begun or char not in SPACE
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
                self.done = self._depth == 0
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.done = self._depth == 0


class ObjectScanner:
    """One JSON object from its brace on. `feed` yields its members' pieces; once `done`, `rest` is what came after it."""

    def __init__(self) -> None:
        self._buffer = ""
        self._state = "open"
        self._key = ""
        self._value = ValueScanner()
        self.done = False
        self.rest = ""

    def feed(self, text: str) -> Iterator[Piece]:
        """Raises Malformed where no object can come of it; `rest` is then what comes behind that place."""
        self._buffer += text
        try:
            yield from self._run()
        except Malformed:
            self.done = True
            raise
        finally:
            if self.done:
                self.rest, self._buffer = self.rest + self._buffer, ""

    def _run(self) -> Iterator[Piece]:
        while not self.done:
            if self._state == "value":
                piece = self._piece()
                if piece.text or piece.last:
                    yield piece
                if not piece.last:
                    return
            elif not self._step():
                return

    def _piece(self) -> Piece:
        if not self._value.begun:
            self._buffer = self._buffer.lstrip(SPACE)
        count = self._value.feed(self._buffer)
        text, self._buffer = self._buffer[:count], self._buffer[count:]
        if self._value.done:
            self._state = "comma"
        return Piece(self._key, text, self._value.done)

    def _step(self) -> bool:
        """Takes one token of the object's frame; False: not all of it is there yet."""
        self._buffer = self._buffer.lstrip(SPACE)
        if not self._buffer:
            return False
        if self._state == "key":
            return self._take_key()
        char, self._buffer = self._buffer[0], self._buffer[1:]
        match self._state, char:
            case "open", "{":
                self._state = "first"
            case "first" | "comma", "}":
                self.done = True
            case "first", '"':
                self._state, self._buffer = "key", char + self._buffer
            case "comma", ",":
                self._state = "key"
            case "colon", ":":
                self._state, self._value = "value", ValueScanner()
            case _:
                raise Malformed(f"unexpected {char!r}")
        return True

    def _take_key(self) -> bool:
        if self._buffer[0] != '"':
            raise Malformed(f"expected a key, got {self._buffer[0]!r}")
        scanner = ValueScanner()
        count = scanner.feed(self._buffer)
        if not scanner.done:
            return False
        try:
            self._key = json.loads(self._buffer[:count], strict=False)
        except ValueError:
            raise Malformed("a key is no string") from None
        self._state, self._buffer = "colon", self._buffer[count:]
        return True
