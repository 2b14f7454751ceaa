"""Readers of answers: from token events to text, reasoning and calls."""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Iterable, Iterator

from locallab.chat.deltas import Delta, Text, WholeAnswer, gather
from locallab.chat.turn import Turn
from locallab.engine.request import TokenEvent, Usage
from locallab.server.inference.generation import FinishedAnswer, Item


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """The end of an answer. `finish_reason` is stop, length or tool_calls."""

    finish_reason: str
    usage: Usage


@dataclasses.dataclass(frozen=True, slots=True)
class News:
    """The content of one `event` for the answer with this index."""

    index: int
    deltas: list[Delta]
    end: End | None
    event: TokenEvent


class Reader:
    """Parses `n` answers to a turn as their events come."""

    def __init__(self, turn: Turn, n: int = 1) -> None:
        self._parsers = [turn.parser() for _ in range(n)]

    def read(self, items: Iterable[Item]) -> Iterator[News]:
        for index, event in items:
            parser = self._parsers[index]
            deltas = parser.feed(event.text) if event.text else []
            end = None
            if event.finish_reason is not None:
                deltas += parser.finish()
                end = End(_reason(event.finish_reason, parser.called), event.usage or Usage(0, 0, 0))
            yield News(index, deltas, end, event)


def read_whole(turn: Turn, answer: FinishedAnswer) -> tuple[WholeAnswer, End]:
    """Parse a complete answer."""
    parser = turn.parser()
    whole = gather([*parser.feed(answer.text), *parser.finish()])
    return whole, End(_reason(answer.finish_reason, parser.called), answer.usage)


def plain_text(deltas: Iterable[Delta]) -> str:
    """Join the text among the deltas, without reasoning and calls."""
    return "".join(delta.text for delta in deltas if isinstance(delta, Text))


def _reason(reason: str, called: bool) -> str:
    return "tool_calls" if called and reason == "stop" else reason


class TextPosition:
    """The position in a text, in characters, as its tokens come."""

    def __init__(self, end: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.end = end

    @property
    def reached(self) -> int:
        """The end, plus one for a character of which only a part has come."""
        return self.end + bool(self._decoder.getstate()[0])

    def passed(self, piece: bytes) -> int:
        """Move behind the piece, and return where it begins."""
        begin = self.end
        self.end += len(self._decoder.decode(piece))
        return begin
