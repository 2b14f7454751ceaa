"""Answers of Ollama's dialect: one object, or a line of JSON for each piece of it and one at the end."""

from __future__ import annotations

import abc
import datetime
import json
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from locallab.chat.deltas import CallArguments, CallStart, Delta, Reasoning, Text, gather
from locallab.chat.turn import Turn
from locallab.server.errors import ollama_body
from locallab.server.generate import Item
from locallab.server.reader import End, Reader

dumps = msgspec.json.Encoder().encode

Nanoseconds = Annotated[int, Meta(ge=0, description="in nanoseconds")]


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


class OllamaChunks(abc.ABC):
    """Reads one answer. A call goes out when it is complete, since its arguments are an object here; one that was cut off is
    left out, and the end says so."""

    def __init__(self, turn: Turn, model: str, clock: Clock) -> None:
        self._reader = Reader(turn)
        self._model = model
        self._clock = clock
        self._deltas: list[Delta] = []
        self._call: list[CallStart | CallArguments] = []
        self._end: End | None = None
        self._heard = False

    @abc.abstractmethod
    def piece(self, text: str, **more: Any) -> dict[str, Any]:
        """What an object has beside what all have; `more` are `thinking` and `tool_calls`."""

    def read(self, items: list[Item]) -> list[Delta]:
        """What the news bring."""
        if items and not self._heard:
            self._heard = True
            self._clock.first()
        found: list[Delta] = []
        for news in self._reader.read(items):
            found += news.deltas
            if news.end is not None:
                self._end = news.end
                self._clock.ended()
        return found

    def take(self, items: list[Item]) -> None:
        """Keeps what the news bring, for `whole`."""
        self._deltas += self.read(items)

    def whole(self) -> dict[str, Any]:
        """The answer in one piece, from what was taken."""
        said = gather(self._deltas)
        starts = {delta.id: delta for delta in self._deltas if isinstance(delta, CallStart)}
        calls = [body for call in said.calls if (body := _call(starts[call.id], call.arguments))]
        more = {"thinking": said.reasoning} if said.reasoning else {}
        return self._object(self.piece(said.text, **more, **({"tool_calls": calls} if calls else {})), **self._ending())

    def encode(self, items: list[Item]) -> bytes:
        lines = [line for delta in self.read(items) for line in self._lines(delta)]
        return b"".join([*lines, *(self._flush() if self._end else ())])

    def end(self) -> bytes:
        return dumps(self._object(self.piece(""), **self._ending())) + b"\n"

    def fail(self, error: Exception) -> bytes:
        return dumps(ollama_body(error)) + b"\n"

    def ping(self) -> bytes:
        return self._line("")

    def _lines(self, delta: Delta) -> Iterator[bytes]:
        if not isinstance(delta, CallArguments):
            yield from self._flush()
        match delta:
            case Text(text):
                yield self._line(text)
            case Reasoning(text):
                yield self._line("", thinking=text)
            case CallStart() | CallArguments():
                self._call.append(delta)

    def _flush(self) -> Iterator[bytes]:
        """The call that is complete now, if there is one."""
        if self._call:
            [call] = gather(self._call).calls
            body = _call(self._call[0], call.arguments)
            self._call = []
            if body is not None:
                yield self._line("", tool_calls=[body])

    def _line(self, text: str, **more: Any) -> bytes:
        return dumps(self._object(self.piece(text, **more), done=False)) + b"\n"

    def _ending(self) -> dict[str, Any]:
        assert self._end is not None, "the answer has not ended"
        reason = "length" if self._end.finish_reason == "length" else "stop"
        return {"done": True, "done_reason": reason, **self._clock.figures(self._end)}

    def _object(self, piece: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"model": self._model, "created_at": now(), **piece, **more}


class GenerateChunks(OllamaChunks):
    def piece(self, text: str, **more: Any) -> dict[str, Any]:
        return {"response": text, **more}


class ChatChunks(OllamaChunks):
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
