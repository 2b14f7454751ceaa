"""The tokens of an answer's text, without those of reasoning, calls and markup."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from locallab.chat.deltas import CallArguments, Delta, Reasoning, Text
from locallab.chat.turn import Turn
from locallab.engine.request import TokenEvent, TokenLogprob
from locallab.server.inference.generation import Item
from locallab.server.inference.reader import News, Reader, TextPosition

CLOSING = ">]}"
"""Characters that end markup."""


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredText(Text):
    """Text with the logprobs of its tokens. A token that reaches over its end belongs to the text where it begins."""

    logprobs: tuple[TokenLogprob, ...]


class ScoredReader(Reader):
    """Reads one answer; its texts are ScoredTexts.

    A parser holds text back and removes markup, so it is fed a character at a time: its output is then the last input, except
    for what it still holds back.
    """

    def __init__(self, turn: Turn) -> None:
        super().__init__(turn)
        self._spans = TokenSpans()

    def read(self, items: Iterable[Item]) -> Iterator[News]:
        for index, event in items:
            self._spans.add(event.logprobs)
            deltas: list[Delta] = []
            characters = (TokenEvent(character) for character in event.text)
            for news in super().read((index, each) for each in (*characters, dataclasses.replace(event, text=""))):
                self._spans.feed(news.event.text)
                for delta in news.deltas:
                    logprobs = self._spans.take(delta)
                    deltas.append(ScoredText(delta.text, logprobs) if isinstance(delta, Text) else delta)
            yield News(index, _merged(deltas), news.end, event)


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """A token, and the span of characters of which it has all or parts."""

    begin: int
    end: int
    logprob: TokenLogprob

    def touches(self, begin: int, end: int) -> bool:
        return self.begin < end and self.end > begin


class TokenSpans:
    """Finds the tokens of a parser's output. Hidden control tokens are part of none."""

    def __init__(self) -> None:
        self._position = TextPosition()
        self._waiting: list[Placed] = []
        self._fed = ""  # input behind the last text found
        self._start = 0  # its position
        self._last: type[Delta] | None = None

    def add(self, logprobs: Iterable[TokenLogprob]) -> None:
        """Add tokens whose text is fed next, or later."""
        position = self._position
        self._waiting += [Placed(position.passed(each.piece), position.reached, each) for each in logprobs if not each.hidden]

    def feed(self, text: str) -> None:
        """Append a text that the parser was fed."""
        self._fed += text

    def take(self, delta: Delta) -> tuple[TokenLogprob, ...]:
        """Return the tokens of this output, each once, and drop those before it."""
        found: list[TokenLogprob] = []
        if isinstance(delta, Text | Reasoning):
            begin = self._find(delta)
            end = min(begin + len(delta.text), self._start + len(self._fed))
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if isinstance(delta, Text) and each.touches(begin, end):
                    found.append(each.logprob)
                elif each.end > end:
                    self._waiting.append(each)
            self._fed, self._start = self._fed[end - self._start :], end
        self._last = type(delta)
        return tuple(found)

    def _find(self, delta: Text | Reasoning) -> int:
        """Return where the output begins: at once if it continues the last one, otherwise behind some markup."""
        fed, text = self._fed, delta.text
        if type(delta) is self._last and fed.startswith(text):
            return self._start
        at = len(fed) - len(text) if fed.endswith(text) else fed.rfind(text)
        if text[:1] not in CLOSING and fed[:at].endswith(text):  # the second of two that are alike is held back
            at -= len(text)
        return self._start + (at if at >= 0 else max(0, len(fed) - len(text)))


def _merged(deltas: Iterable[Delta]) -> list[Delta]:
    """Join neighbours of the same kind."""
    merged: list[Delta] = []
    for delta in deltas:
        match [*merged[-1:], delta]:
            case [ScoredText(first, before), ScoredText(second, logprobs)]:
                merged[-1] = ScoredText(first + second, (*before, *logprobs))
            case [Reasoning(first), Reasoning(second)]:
                merged[-1] = Reasoning(first + second)
            case [CallArguments(index, first, custom), CallArguments(other, second)] if index == other:
                merged[-1] = CallArguments(index, first + second, custom)
            case _:
                merged.append(delta)
    return merged
