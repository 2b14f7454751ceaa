"""Parser of a model's raw text into deltas: reasoning first, then text and tool calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from locallab.chat.deltas import CallStart, Delta, Parser, Text
from locallab.chat.json_scanner import SPACE


class AnswerParser:
    """Chain the parsers of reasoning and of calls; either may be absent. White space next to calls is dropped.

    `called` is set once a call has started.
    """

    def __init__(self, reasoning: Parser | None = None, calls: Parser | None = None) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._space = ""  # at the end of the text so far: it counts only if more text follows, or no call does
        self.called = False

    def feed(self, text: str) -> list[Delta]:
        return self._read([Text(text)] if self._reasoning is None else self._reasoning.feed(text))

    def finish(self) -> list[Delta]:
        deltas = self._read(self._reasoning.finish()) if self._reasoning else []
        if self._calls is not None:
            deltas += self._trimmed(self._calls.finish())
        if self._space and not self.called:
            deltas.append(Text(self._space))
        self._space = ""
        return deltas

    def _read(self, deltas: list[Delta]) -> list[Delta]:
        if self._calls is None:
            return deltas
        found: list[Delta] = []
        for delta in deltas:
            found += self._trimmed(self._calls.feed(delta.text)) if isinstance(delta, Text) else [delta]
        return found

    def _trimmed(self, deltas: Iterable[Delta]) -> Iterator[Delta]:
        """Yield the deltas without white space next to calls; mutates `_space` and `called`."""
        for delta in deltas:
            if isinstance(delta, Text):
                text = self._space + delta.text
                kept = text.rstrip(SPACE)
                self._space = text[len(kept) :]
                if kept:
                    yield Text(kept)
                continue
            if isinstance(delta, CallStart):
                self.called = True
                self._space = ""
            yield delta
