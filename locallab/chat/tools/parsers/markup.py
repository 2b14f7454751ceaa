"""Parsers written as generators that wait for the next marker where the text has not arrived yet."""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator

from locallab.chat.deltas import CallArguments, CallStart, Delta, Text, held_back
from locallab.chat.json_scanner import SPACE, ValueScanner
from locallab.chat.tools.format import NewId

Script = Generator[Delta | None, None, None]
Step = Generator[Delta | None, None, str]
Check = Generator[Delta | None, None, bool]


class Ended(Exception):
    """The answer ended ahead of a marker. `rest` is the text read in vain."""

    def __init__(self, rest: str) -> None:
        super().__init__(rest)
        self.rest = rest


class MarkupParser(abc.ABC):
    """A Parser whose grammar is `script`: a generator of deltas, and of None where it needs more text.

    If the answer ends while the script waits for a marker, Ended is raised inside it. `n_calls` is the index of the current
    call; scripts increment it.
    """

    def __init__(self, new_id: NewId) -> None:
        self.buffer = ""
        self.ended = False
        self.n_calls = 0
        self._new_id = new_id
        self._script = self.script()

    @abc.abstractmethod
    def script(self) -> Script:
        """Parse the whole answer; may run forever."""

    def feed(self, text: str) -> list[Delta]:
        self.buffer += text
        return self._run()

    def finish(self) -> list[Delta]:
        self.ended = True
        return self._run()

    def call_start(self, name: str) -> Delta:
        return CallStart(self.n_calls, self._new_id(), name)

    def call_arguments(self, text: str) -> Delta:
        return CallArguments(self.n_calls, text)

    def text_until(self, *markers: str, wrap: Callable[[str], Delta] = Text) -> Step:
        """Yield text as it arrives up to the next marker; take the marker and return it, or "" at the answer's end."""
        while True:
            found = [(at, marker) for marker in markers if (at := self.buffer.find(marker)) >= 0]
            if found:
                at, marker = min(found)
            else:
                at, marker = len(self.buffer) - (0 if self.ended else held_back(self.buffer, *markers)), ""
            text, self.buffer = self.buffer[:at], self.buffer[at + len(marker) :]
            if text:
                yield wrap(text)
            if marker or self.ended:
                return marker
            yield None

    def until(self, marker: str) -> Step:
        """Wait for the marker, take it, and return the text before it. Raises Ended."""
        before = yield from self.before(marker)
        self.buffer = self.buffer[len(marker) :]
        return before

    def before(self, *markers: str) -> Step:
        """Wait for the first of the markers, leave it, and return the text before it. Raises Ended."""
        while not (found := [at for marker in markers if (at := self.buffer.find(marker)) >= 0]):
            if self.ended:
                rest, self.buffer = self.buffer, ""
                raise Ended(rest)
            yield None
        before, self.buffer = self.buffer[: min(found)], self.buffer[min(found) :]
        return before

    def json_arguments(self) -> Check:
        """Yield one JSON value as the call's arguments; return whether it is complete."""
        scanner = ValueScanner()
        while True:
            count = scanner.feed(self.buffer)
            text, self.buffer = self.buffer[:count], self.buffer[count:]
            if text:
                yield self.call_arguments(text)
            if scanner.done or self.ended:
                return scanner.done
            yield None

    def takes(self, marker: str) -> Check:
        """Take the marker if it comes next; return whether it does."""
        while len(self.buffer) < len(marker) and marker.startswith(self.buffer) and not self.ended:
            yield None
        if not self.buffer.startswith(marker):
            return False
        self.buffer = self.buffer[len(marker) :]
        return True

    def skip_space(self, space: str = SPACE) -> Step:
        """Drop white space; return it."""
        skipped = ""
        while True:
            bare = self.buffer.lstrip(space)
            skipped += self.buffer[: len(self.buffer) - len(bare)]
            self.buffer = bare
            if bare or self.ended:
                return skipped
            yield None

    def _run(self) -> list[Delta]:
        deltas: list[Delta] = []
        for delta in self._script:
            if delta is not None:
                deltas.append(delta)
            elif not self.ended:
                return deltas
        rest, self.buffer = self.buffer, ""
        return [*deltas, Text(rest)] if rest else deltas
