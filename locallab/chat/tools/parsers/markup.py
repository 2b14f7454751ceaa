"""Parsers written as scripts: a generator that asks for the next marker, and waits where the text has not come yet."""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator

from locallab.chat.deltas import Delta, Text, held_back
from locallab.chat.json_scanner import SPACE, ValueScanner

Script = Generator[Delta | None, None, None]
Step = Generator[Delta | None, None, str]
Check = Generator[Delta | None, None, bool]


class Ended(Exception):
    """The answer has ended where more was to come. `rest` is what was read of it."""

    def __init__(self, rest: str) -> None:
        super().__init__(rest)
        self.rest = rest


class MarkupParser(abc.ABC):
    """A Parser whose grammar is `script`: it yields deltas, and None where it needs more text. Where the answer ends while the
    script waits for a marker, Ended is raised inside it."""

    def __init__(self) -> None:
        self.buffer = ""
        self.ended = False
        self._script = self.script()

    @abc.abstractmethod
    def script(self) -> Script:
        """Reads the whole answer; may run for ever."""

    def feed(self, text: str) -> list[Delta]:
        self.buffer += text
        return self._run()

    def finish(self) -> list[Delta]:
        self.ended = True
        return self._run()

    def text_until(self, *markers: str, wrap: Callable[[str], Delta] = Text) -> Step:
        """Gives text out, as it comes, up to the next of the markers, which is taken and returned; "" at the end."""
        while True:
            found = [(at, marker) for marker in markers if (at := self.buffer.find(marker)) >= 0]
            at, marker = min(found) if found else (len(self.buffer) - self._held(*markers), "")
            text, self.buffer = self.buffer[:at], self.buffer[at + len(marker) :]
            if text:
                yield wrap(text)
            if marker or self.ended:
                return marker
            yield None

    def until(self, marker: str) -> Step:
        """Waits for the marker, takes it, and returns what was before it. Raises Ended."""
        before = yield from self.before(marker)
        self.buffer = self.buffer[len(marker) :]
        return before

    def before(self, *markers: str) -> Step:
        """Waits for the first of the markers, leaves it, and returns what was before it. Raises Ended."""
        while not (found := [at for marker in markers if (at := self.buffer.find(marker)) >= 0]):
            if self.ended:
                rest, self.buffer = self.buffer, ""
                raise Ended(rest)
            yield None
        before, self.buffer = self.buffer[: min(found)], self.buffer[min(found) :]
        return before

    def json_value(self, wrap: Callable[[str], Delta]) -> Check:
        """Gives out one JSON value as it comes; whether it came whole."""
        scanner = ValueScanner()
        while True:
            count = scanner.feed(self.buffer)
            text, self.buffer = self.buffer[:count], self.buffer[count:]
            if text:
                yield wrap(text)
            if scanner.done or self.ended:
                return scanner.done
            yield None

    def takes(self, marker: str) -> Check:
        """Whether the marker comes next; takes it if so."""
        while len(self.buffer) < len(marker) and marker.startswith(self.buffer) and not self.ended:
            yield None
        if not self.buffer.startswith(marker):
            return False
        self.buffer = self.buffer[len(marker) :]
        return True

    def skip_space(self, space: str = SPACE) -> Step:
        """Drops white space; returns it."""
        skipped = ""
        while True:
            bare = self.buffer.lstrip(space)
            skipped += self.buffer[: len(self.buffer) - len(bare)]
            self.buffer = bare
            if bare or self.ended:
                return skipped
            yield None

    def _held(self, *markers: str) -> int:
        return 0 if self.ended else held_back(self.buffer, *markers)

    def _run(self) -> list[Delta]:
        deltas: list[Delta] = []
        for delta in self._script:
            if delta is not None:
                deltas.append(delta)
            elif not self.ended:
                return deltas
        rest, self.buffer = self.buffer, ""
        return [*deltas, Text(rest)] if rest else deltas
