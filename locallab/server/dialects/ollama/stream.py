"""Answers of Ollama's dialect: one object, or a line of JSON for each piece of it and one at the end."""

from __future__ import annotations

import abc
import datetime
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from locallab.chat.deltas import CallArguments, CallStart, Delta, Reasoning, Text, gather
from locallab.chat.turn import Turn
from locallab.engine.request import TokenLogprob
from locallab.server.dialects.answer_fields import TopToken
from locallab.server.dialects.ollama.errors import ollama_body
from locallab.server.dialects.openai.logprobs import token_logprobs
from locallab.server.inference.generation import Item
from locallab.server.inference.reader import End, News, Reader
from locallab.server.streaming import line

Nanoseconds = Annotated[int, Meta(ge=0, description="in nanoseconds")]


class OllamaToken(TopToken):
    """How likely a token was."""

    top_logprobs: Annotated[list[TopToken] | UnsetType, Meta(description="the likeliest tokens in its place")] = UNSET


OllamaTokens = Annotated[
    list[OllamaToken] | UnsetType, Meta(description="if asked for: of all tokens, those of thinking and of calls included")
]


class Measured(msgspec.Struct, kw_only=True):
    """What the end of every answer tells; load and unload measure nothing."""

    model: str
    created_at: Annotated[str, Meta(description="as RFC 3339 has it")]
    done: Annotated[bool, Meta(description="whether this is the end of the answer")]
    done_reason: Literal["stop", "length", "load", "unload"] | UnsetType = UNSET
    total_duration: Nanoseconds | UnsetType = UNSET
    load_duration: Nanoseconds | UnsetType = UNSET
    prompt_eval_count: Annotated[int | UnsetType, Meta(description="tokens of the prompt")] = UNSET
    prompt_eval_duration: Nanoseconds | UnsetType = UNSET
    eval_count: Annotated[int | UnsetType, Meta(description="tokens of the answer")] = UNSET
    eval_duration: Nanoseconds | UnsetType = UNSET


class GenerateAnswer(Measured, kw_only=True):
    """The answer of /api/generate; of a stream, one piece of it."""

    response: str
    thinking: str | UnsetType = UNSET
    logprobs: OllamaTokens = UNSET


class CalledFunction(msgspec.Struct):
    index: int
    name: str
    arguments: dict[str, Any]


class Called(msgspec.Struct):
    id: str
    function: CalledFunction


class OllamaMessage(msgspec.Struct, kw_only=True):
    role: Literal["assistant"]
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[Called] | UnsetType = UNSET


class ChatAnswer(Measured, kw_only=True):
    """The answer of /api/chat; of a stream, one piece of it."""

    message: OllamaMessage
    logprobs: OllamaTokens = UNSET


class Clock:
    """What one request took, in nanoseconds."""

    def __init__(self) -> None:
        self._began = self._loaded = self._first = self._ended = time.perf_counter_ns()

    def loaded(self) -> None:
        """The model is there."""
        self._loaded = self._first = self._ended = time.perf_counter_ns()

    def first(self) -> None:
        """The prompt is read: the first token has come."""
        self._first = self._ended = time.perf_counter_ns()

    def ended(self) -> None:
        self._ended = time.perf_counter_ns()

    def figures(self, end: End) -> dict[str, int]:
        """The durations, with the tokens that they are of. None is 0: clients divide by them."""
        return {
            "total_duration": max(1, self._ended - self._began),
            "load_duration": max(1, self._loaded - self._began),
            "prompt_eval_count": end.usage.prompt_tokens,
            "prompt_eval_duration": max(1, self._first - self._loaded),
            "eval_count": end.usage.completion_tokens,
            "eval_duration": max(1, self._ended - self._first),
        }


class OllamaFormatter(abc.ABC):
    """Reads one answer. A call goes out when it is complete, since its arguments are an object here; one that was cut off is
    left out, and the end says so. Logprobs come with the step that brought the token, even where its text is held back."""

    def __init__(self, turn: Turn, model: str, clock: Clock) -> None:
        self._reader = Reader(turn)
        self._model = model
        self._clock = clock
        self._deltas: list[Delta] = []
        self._told: list[TokenLogprob] = []
        self._call: list[CallStart | CallArguments] = []
        self._end: End | None = None
        self._heard = False

    @abc.abstractmethod
    def piece(self, text: str, **more: Any) -> dict[str, Any]:
        """What an object has beside what all have; `more` are `thinking` and `tool_calls`."""

    def read(self, items: list[Item]) -> Iterator[News]:
        """What the events bring; the clock sees them."""
        if items and not self._heard:
            self._heard = True
            self._clock.first()
        for news in self._reader.read(items):
            if news.end is not None:
                self._end = news.end
                self._clock.ended()
            yield news

    def take(self, items: list[Item]) -> None:
        """Keeps what the news bring, for `whole`."""
        for news in self.read(items):
            self._deltas += news.deltas
            self._told += news.event.logprobs

    def whole(self) -> dict[str, Any]:
        """The answer in one piece, from what was taken."""
        said = gather(self._deltas)
        starts = {delta.id: delta for delta in self._deltas if isinstance(delta, CallStart)}
        calls = [body for call in said.calls if (body := _call(starts[call.id], call.arguments))]
        more = {"thinking": said.reasoning} if said.reasoning else {}
        piece = self.piece(said.text, **more, **({"tool_calls": calls} if calls else {}))
        told = {"logprobs": ollama_logprobs(self._told)} if self._told else {}
        return self._object(piece, **told, **self._ending())

    def encode(self, items: list[Item]) -> bytes:
        return b"".join([line(body) for news in self.read(items) for body in self._bodies(news)])

    def end(self) -> bytes:
        return line(self._object(self.piece(""), **self._ending()))

    def fail(self, error: Exception) -> bytes:
        return line(ollama_body(error))

    def ping(self) -> bytes:
        return line(self._part(""))

    def _bodies(self, news: News) -> Iterable[dict[str, Any]]:
        said = self._said(news)
        return self._scored(said, news.event.logprobs) if news.event.logprobs else said

    def _scored(self, said: Iterator[dict[str, Any]], told: Sequence[TokenLogprob]) -> Iterator[dict[str, Any]]:
        """The first object brings the logprobs; where nothing is said, one that says nothing."""
        yield {**next(said, self._part("")), "logprobs": ollama_logprobs(told)}
        yield from said

    def _said(self, news: News) -> Iterator[dict[str, Any]]:
        for delta in news.deltas:
            yield from self._delta(delta)
        if news.end is not None:
            yield from self._flush()

    def _delta(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if not isinstance(delta, CallArguments):
            yield from self._flush()
        match delta:
            case Text(text):
                yield self._part(text)
            case Reasoning(text):
                yield self._part("", thinking=text)
            case CallStart() | CallArguments():
                self._call.append(delta)

    def _flush(self) -> Iterator[dict[str, Any]]:
        """The call that is complete now, if there is one."""
        if self._call:
            [call] = gather(self._call).calls
            body = _call(self._call[0], call.arguments)
            self._call = []
            if body is not None:
                yield self._part("", tool_calls=[body])

    def _part(self, text: str, **more: Any) -> dict[str, Any]:
        """One object of a stream, but for the last."""
        return self._object(self.piece(text, **more), done=False)

    def _ending(self) -> dict[str, Any]:
        assert self._end is not None, "the answer has not ended"
        reason = "length" if self._end.finish_reason == "length" else "stop"
        return {"done": True, "done_reason": reason, **self._clock.figures(self._end)}

    def _object(self, piece: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"model": self._model, "created_at": now(), **piece, **more}


class GenerateFormatter(OllamaFormatter):
    def piece(self, text: str, **more: Any) -> dict[str, Any]:
        return {"response": text, **more}


class ChatFormatter(OllamaFormatter):
    def piece(self, text: str, **more: Any) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, **more}}


def now() -> str:
    """The time as Ollama writes it."""
    return rfc3339(datetime.datetime.now(datetime.timezone.utc))


def rfc3339(moment: datetime.datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _call(start: CallStart | CallArguments, written: str) -> dict[str, Any] | None:
    """A call whose arguments are whole; None otherwise."""
    assert isinstance(start, CallStart)
    try:
        arguments = json.loads(written)
    except ValueError:
        return None
    function = {"index": start.index, "name": start.name, "arguments": arguments}
    return {"id": start.id, "function": function} if isinstance(arguments, dict) else None


def ollama_logprobs(told: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """The same as Ollama tells them: where there are no alternatives it says nothing of them."""
    return [{key: value for key, value in each.items() if key != "top_logprobs" or value} for each in token_logprobs(told)]
