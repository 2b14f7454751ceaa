"""Parser of a model's raw text into deltas: reasoning first, then text and tool calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from locallab.chat.deltas import CallArguments, CallStart, Delta, Parser, Text
from locallab.chat.json_scanner import SPACE
from locallab.chat.tools.format import Tool
from locallab.chat.tools.free_form import InputReader


class AnswerParser:
    """Chain the parsers of reasoning and of calls; either may be absent. White space next to calls is dropped.

    `tools` are those offered, and `marks` what their calls begin with: the rest of a call that was cut off is no text, nor is
    anything behind a call. With `forced` the answer is nothing but calls. `called` is set once a call has started.
    """

    def __init__(
        self,
        reasoning: Parser | None = None,
        calls: Parser | None = None,
        *,
        tools: Sequence[Tool] = (),
        marks: tuple[str, ...] = (),
        forced: bool = False,
    ) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._tools = {tool.name: tool for tool in tools}
        self._marks = marks
        self._forced = forced
        self._input: InputReader | None = None  # of the current call, if its tool is custom
        self._space = ""  # at the end of the text so far: it counts only if more text follows, or no call does
        self.called = False

    def feed(self, text: str) -> list[Delta]:
        return self._read([Text(text)] if self._reasoning is None else self._reasoning.feed(text))

    def finish(self) -> list[Delta]:
        deltas = self._read(self._reasoning.finish()) if self._reasoning else []
        if self._calls is not None:
            rest = self._calls.finish()
            is_cut_call = self.called or _beginning(rest).startswith(self._marks)
            deltas += self._trimmed(delta for delta in rest if not (is_cut_call and isinstance(delta, Text)))
        if self._space and not self.called and not self._forced:
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
            match delta:
                case Text():
                    if not self._forced:
                        yield from self._text(delta)
                case CallStart():
                    self.called = True
                    self._space = ""
                    yield self._call(delta)
                case CallArguments(index, text) if self._input is not None:
                    if part := self._input.feed(text):
                        yield CallArguments(index, part, custom=True)
                case _:
                    yield delta

    def _text(self, delta: Text) -> Iterator[Delta]:
        text = self._space + delta.text
        kept = text.rstrip(SPACE)
        self._space = text[len(kept) :]
        if kept:
            yield Text(kept)

    def _call(self, start: CallStart) -> Delta:
        """Return the start of a call as its client knows the tool."""
        tool = self._tools.get(start.name)
        self._input = InputReader() if tool and tool.custom else None
        if tool is None or not (tool.custom or tool.namespace):
            return start
        return dataclasses.replace(start, name=tool.own_name, custom=tool.custom, namespace=tool.namespace)


def _beginning(deltas: Sequence[Delta]) -> str:
    """Return the text that the deltas begin with."""
    return deltas[0].text.lstrip(SPACE) if deltas and isinstance(deltas[0], Text) else ""
