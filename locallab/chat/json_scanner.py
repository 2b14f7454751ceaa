"""Incremental scanner of JSON objects: hands on the members' raw values as they arrive, and validates only the frame."""

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
    """The text is not a JSON object."""


class ValueScanner:
    """Find the end of one JSON value, looking only at strings and nesting.

    `begun` is set at the first character that is not white space, `done` at the value's end.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.begun = False
        self.done = False

    def feed(self, text: str) -> int:
        """Return how many characters of `text` belong to the value."""
        for at, char in enumerate(text):
            if self.begun and not self._in_string and self._depth == 0 and (char in ",}]" or char in SPACE):
                self.done = True  # the end of a number or a word, which nothing closes
                return at
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
            if self.done:
                return at + 1
        return len(text)


class ObjectScanner:
    """Scan one JSON object from its opening brace. Once it is `done`, `rest` is the text behind it."""

    def __init__(self) -> None:
        self._buffer = ""
        self._state = "open"
        self._key = ""
        self._value = ValueScanner()
        self.done = False
        self.rest = ""

    def feed(self, text: str) -> Iterator[Piece]:
        """Yield pieces of the members' values. Raises Malformed, with `rest` the text behind the error."""
        self._buffer += text
        try:
            while not self.done:
                if self._state != "value":
                    if not self._step():
                        return
                    continue
                if not self._value.begun:
                    self._buffer = self._buffer.lstrip(SPACE)
                count = self._value.feed(self._buffer)
                value, self._buffer = self._buffer[:count], self._buffer[count:]
                last = self._value.done
                if last:
                    self._state = "comma"
                if value or last:
                    yield Piece(self._key, value, last)
                if not last:
                    return
        except Malformed:
            self.done = True
            raise
        finally:
            if self.done:
                self.rest, self._buffer = self.rest + self._buffer, ""

    def _step(self) -> bool:
        """Take one token of the object's frame; return False if it has not arrived completely."""
        self._buffer = self._buffer.lstrip(SPACE)
        if not self._buffer:
            return False
        char, size = self._buffer[0], 1
        match self._state, char:
            case "open", "{":
                self._state = "first"
            case "first" | "comma", "}":
                self.done = True
            case "first" | "key", '"':
                scanner = ValueScanner()
                size = scanner.feed(self._buffer)
                if not scanner.done:
                    return False
                try:
                    self._key = json.loads(self._buffer[:size], strict=False)
                except ValueError:
                    raise Malformed("a key is not a valid string") from None
                self._state = "colon"
            case "comma", ",":
                self._state = "key"
            case "colon", ":":
                self._state, self._value = "value", ValueScanner()
            case "key", _:
                raise Malformed(f"expected a key, got {char!r}")
            case _:
                self._buffer = self._buffer[1:]
                raise Malformed(f"unexpected {char!r}")
        self._buffer = self._buffer[size:]
        return True
