"""Which tokens an answer's text is made of, for those who are told of no others: not of reasoning, calls or markup."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from locallab.chat.deltas import CallArguments, Delta, Reasoning, Text
from locallab.chat.turn import Turn
from locallab.engine.request import TokenEvent, TokenLogprob
from locallab.server.inference.generation import Item
from locallab.server.inference.reader import News, Reader, TextPosition

CLOSING = ">]}"
"""What markup ends in."""


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredText(Text):
    """Text with the tokens that it is made of. One that reaches over its end belongs to the text where it begins."""

    told: tuple[TokenLogprob, ...]


class ScoredReader(Reader):
    """Reads one answer; its texts are ScoredTexts. A parser holds text back and takes markup out, so it is fed a character at
    a time: what it gives out then is the last that it was fed, but for what it still holds back."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(turn)
        self._origins = TokenSpans()

    def read(self, items: Iterable[Item]) -> Iterator[News]:
        for index, event in items:
            self._origins.add(event.logprobs)
            deltas: list[Delta] = []
            for news in super().read(_characters(index, event)):
                self._origins.feed(news.event.text)
                deltas += map(self._scored, news.deltas)
            yield News(index, _merged(deltas), news.end, event)

    def _scored(self, delta: Delta) -> Delta:
        told = self._origins.take(delta)
        return ScoredText(delta.text, told) if isinstance(delta, Text) else delta


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """A token, and the characters that it brings, or parts of."""

    begin: int
    end: int
    told: TokenLogprob

    def touches(self, begin: int, end: int) -> bool:
        return self.begin < end and self.end > begin


class TokenSpans:
    """Finds the tokens behind what a parser gives out. Control tokens that stand for nothing are behind none of it."""

    def __init__(self) -> None:
        self._place = TextPosition()
        self._waiting: list[Placed] = []
        self._fed = ""  # behind what was found last
        self._start = 0  # of that
        self._last: type[Delta] | None = None

    def add(self, told: Iterable[TokenLogprob]) -> None:
        """Mutates: tokens whose text is fed next, if not at once."""
        self._waiting += [Placed(self._place.passed(each.piece), self._place.reached, each) for each in told if not each.hidden]

    def feed(self, text: str) -> None:
        """Mutates: the parser has got this."""
        self._fed += text

    def take(self, delta: Delta) -> tuple[TokenLogprob, ...]:
        """Mutates: the tokens of this text, each once. Those before it are forgotten."""
        told: list[TokenLogprob] = []
        if isinstance(delta, Text | Reasoning):
            begin = self._find(delta)
            end = min(begin + len(delta.text), self._start + len(self._fed))
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if isinstance(delta, Text) and each.touches(begin, end):
                    told.append(each.told)
                elif each.end > end:
                    self._waiting.append(each)
            self._fed, self._start = self._fed[end - self._start :], end
        self._last = type(delta)
        return tuple(told)

    def _find(self, delta: Text | Reasoning) -> int:
        """Where it begins: at once if it goes on with what was found last, otherwise behind some markup."""
        fed, text = self._fed, delta.text
        if type(delta) is self._last and fed.startswith(text):
            return self._start
        at = len(fed) - len(text) if fed.endswith(text) else fed.rfind(text)
        if text[:1] not in CLOSING and fed[:at].endswith(text):  # the second of two that are alike is held back
            at -= len(text)
        return self._start + (at if at >= 0 else max(0, len(fed) - len(text)))


def _characters(index: int, event: TokenEvent) -> Iterator[Item]:
    """The event in pieces of one character; the last has none, but all else."""
    for character in event.text:
        yield index, TokenEvent(character)
    yield index, dataclasses.replace(event, text="")


def _merged(deltas: Iterable[Delta]) -> list[Delta]:
    """The same in as few pieces as possible."""
    merged: list[Delta] = []
    for delta in deltas:
        match [*merged[-1:], delta]:
            case [ScoredText(first, before), ScoredText(second, told)]:
                merged[-1] = ScoredText(first + second, (*before, *told))
            case [Reasoning(first), Reasoning(second)]:
                merged[-1] = Reasoning(first + second)
            case [CallArguments(index, first), CallArguments(other, second)] if index == other:
                merged[-1] = CallArguments(index, first + second)
            case _:
                merged.append(delta)
    return merged
