"""OpenAI's streams: chunks of chats and completions, with and without log probabilities."""

from __future__ import annotations

import abc
import dataclasses
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from locallab.chat.deltas import CallArguments, CallStart, Delta, Reasoning, Text
from locallab.chat.turn import Turn
from locallab.engine.request import TokenEvent, Usage
from locallab.server.dialects.answer_fields import progress_body, usage_body
from locallab.server.dialects.openai.errors import openai_body
from locallab.server.dialects.openai.logprobs import Echo, chat_logprobs, text_logprobs
from locallab.server.inference.generation import Item
from locallab.server.inference.reader import News, Reader, TextPosition
from locallab.server.streaming import DONE, dumps, event


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of one answer, and its whole, have in common."""

    id: str
    created: int
    model: str

    @classmethod
    def make(cls, prefix: str, model: str) -> Head:
        return cls(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), model)

    def body(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        """An object of OpenAI's shape."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}


class OpenAIChunks(abc.ABC):
    """Chunk objects of OpenAI's shape: what opens a choice, its text, its end; then the usage if asked for, and [DONE].

    `n` answers to each of `total / n` prompts. `finish_usage` puts the usage into the chunk that ends a choice instead.
    """

    kind = ""

    def __init__(
        self, head: Head, total: int = 1, *, n: int = 1, include_usage: bool = False, finish_usage: bool = False
    ) -> None:
        self._head = head
        self._n = n
        self._include_usage = include_usage
        self._finish_usage = finish_usage
        self._usages = [Usage(0, 0, 0)] * total
        self._opened = [False] * total
        self._around = [self._split(index) for index in range(total)]

    def encode(self, items: list[Item]) -> bytes:
        told = [item for item in items if item[1].progress is not None]
        if told:
            items = [item for item in items if item[1].progress is None]
        return b"".join([*self._progress(told), *self._events(items)])

    def end(self) -> bytes:
        usage = [event(self._head.body(self.kind, [], usage=usage_body(self._usages, self._n)))] if self._include_usage else []
        return b"".join([*usage, DONE])

    def fail(self, error: Exception) -> bytes:
        return event(openai_body(error))

    def ping(self) -> bytes:
        return b"".join(self._open(0)) or self._chunk(self.choice(0, "", None))

    @abc.abstractmethod
    def opening(self, index: int) -> list[dict[str, Any]]:
        """Choices to send before the first text of an answer, one chunk each."""

    @abc.abstractmethod
    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """A choice that brings text, or ends the answer with none."""

    def _events(self, items: list[Item]) -> Iterable[bytes]:
        for index, news in items:
            yield from self._open(index)
            if news.text:
                yield dumps(news.text).join(self._around[index])
            if news.finish_reason is not None:
                yield self._last(index, news.finish_reason, news.usage or Usage(0, 0, 0))

    def _progress(self, items: list[Item]) -> Iterable[bytes]:
        for index, news in items:
            if news.progress is not None:
                yield from self._open(index)
                yield self._chunk(self.choice(index, "", None), prompt_progress=progress_body(news.progress))

    def _last(self, index: int, finish_reason: str, usage: Usage) -> bytes:
        """What ends an answer."""
        self._usages[index] = usage
        more = {"usage": usage_body([usage])} if self._finish_usage else {}
        return self._chunk(self.choice(index, "", finish_reason), **more)

    def _open(self, index: int) -> Iterable[bytes]:
        """What opens an answer, once."""
        if not self._opened[index]:
            self._opened[index] = True
            yield from (self._chunk(choice) for choice in self.opening(index))

    def _chunk(self, choice: dict[str, Any], **more: Any) -> bytes:
        if self._include_usage:
            more.setdefault("usage", None)
        return event(self._head.body(self.kind, [choice], **more))

    def _split(self, index: int) -> list[bytes]:
        """The bytes around the text of a chunk: a sample, cut at a text that occurs nowhere else."""
        mark = secrets.token_hex(16)
        return self._chunk(self.choice(index, mark, None)).split(dumps(mark))


class ChatChunks(OpenAIChunks):
    """The chunks of `n` answers to one turn. An answer that is all text takes the short way, without a parser."""

    kind = "chat.completion.chunk"

    def __init__(self, head: Head, turn: Turn, n: int = 1, *, include_usage: bool = False, finish_usage: bool = False) -> None:
        super().__init__(head, n, n=n, include_usage=include_usage, finish_usage=finish_usage)
        self._reader = None if turn.is_plain else Reader(turn, n)

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish_reason}

    def _events(self, items: list[Item]) -> Iterable[bytes]:
        if self._reader is None:
            yield from super()._events(items)
            return
        for news in self._reader.read(items):
            yield from self._open(news.index)
            for delta in news.deltas:
                yield self._chunk({"index": news.index, "delta": delta_body(delta), "finish_reason": None})
            if news.end is not None:
                yield self._last(news.index, news.end.finish_reason, news.end.usage)


def delta_body(delta: Delta) -> dict[str, Any]:
    match delta:
        case Text(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallStart(index, id, name):
            return {"tool_calls": [{"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


class CompletionChunks(OpenAIChunks):
    """`echo` holds, for each answer, a text to send ahead of it."""

    kind = "text_completion"

    def __init__(self, head: Head, echo: Sequence[str], *, n: int, include_usage: bool) -> None:
        self._echo = echo
        super().__init__(head, len(echo), n=n, include_usage=include_usage)

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self.choice(index, self._echo[index], None)] if self._echo[index] else []

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def fail(self, error: Exception) -> bytes:
        return event(openai_body(error, "prompt"))


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
        self._places = [TextPosition(len(each.text) if each else 0) for each in echo]

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
