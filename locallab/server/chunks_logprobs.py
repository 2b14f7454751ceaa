"""OpenAI's streams for clients that want to know how likely each token was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from locallab.chat.turn import Turn
from locallab.engine.request import TokenEvent, Usage
from locallab.server.chunks import ChatChunks, CompletionChunks, Head, delta_body
from locallab.server.inference.generation import Item
from locallab.server.inference.reader import News, Reader
from locallab.server.logprobs import Echo, Place, chat_logprobs, text_logprobs


class ScoredChat(ChatChunks):
    """Logprobs come with the step that brought the token, even where its text is held back."""

    def __init__(self, head: Head, turn: Turn, n: int = 1, *, include_usage: bool = False) -> None:
        super().__init__(head, turn, n, include_usage=include_usage)
        self._scored = Reader(turn, n)

    def _events(self, items: list[Item]) -> Iterable[bytes]:
        for news in self._scored.read(items):
            yield from self._open(news.index)
            yield from self._news(news)
            if news.end is not None:
                yield self._last(news.index, news.end.finish_reason, news.end.usage)

    def _news(self, news: News) -> Iterable[bytes]:
        told = chat_logprobs(news.event.logprobs) if news.event.logprobs else None
        for body in [delta_body(delta) for delta in news.deltas] or [{}] * bool(told):
            yield self._chunk({"index": news.index, "delta": body, "logprobs": told, "finish_reason": None})
            told = None


class ScoredCompletions(CompletionChunks):
    """An echo waits for the logprobs of the prompt."""

    def __init__(self, head: Head, echo: Sequence[Echo | None], *, n: int, include_usage: bool) -> None:
        super().__init__(head, [""] * len(echo), n=n, include_usage=include_usage)
        self._prompts = list(echo)
        self._places = [Place(len(each.text) if each else 0) for each in echo]

    def _events(self, items: list[Item]) -> Iterable[bytes]:
        for index, news in items:
            yield from self._echoed(index, news)
            if news.text or news.logprobs:
                yield self._scored(index, news.text, text_logprobs(self._places[index], news.logprobs))
            if news.finish_reason is not None:
                yield self._last(index, news.finish_reason, news.usage or Usage(0, 0, 0))

    def _echoed(self, index: int, news: TokenEvent) -> Iterable[bytes]:
        echo, self._prompts[index] = self._prompts[index], None
        if echo is not None:
            yield self._scored(index, echo.text, echo.logprobs(news.prompt_logprobs))

    def _scored(self, index: int, text: str, logprobs: dict[str, Any]) -> bytes:
        return self._chunk({**self.choice(index, text, None), "logprobs": logprobs})
