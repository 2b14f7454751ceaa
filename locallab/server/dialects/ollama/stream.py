"""Answers of Ollama's dialect: one object, or a line of JSON for each piece and one at the end."""

from __future__ import annotations

import abc
import datetime
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from locallab.chat.deltas import CallArguments, CallStart, Delta, Reasoning, Text, gather
from locallab.chat.json_text import loads
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
    """A token with its log probability."""

    top_logprobs: Annotated[list[TopToken] | UnsetType, Meta(description="the likeliest tokens at its position")] = UNSET


OllamaTokens = Annotated[
    list[OllamaToken] | UnsetType, Meta(description="if requested: those of all tokens, including reasoning and calls")
]


class Measured(msgspec.Struct, kw_only=True):
    """Common fields of all answers; those that only load or unload have no figures."""

    model: str
    created_at: Annotated[str, Meta(description="as in RFC 3339")]
    done: Annotated[bool, Meta(description="whether this is the end of the answer")]
    done_reason: Literal["stop", "length", "load", "unload"] | UnsetType = UNSET
    total_duration: Nanoseconds | UnsetType = UNSET
    load_duration: Nanoseconds | UnsetType = UNSET
    prompt_eval_count: Annotated[int | UnsetType, Meta(description="tokens of the prompt")] = UNSET
    prompt_eval_duration: Nanoseconds | UnsetType = UNSET
    eval_count: Annotated[int | UnsetType, Meta(description="tokens of the answer")] = UNSET
    eval_duration: Nanoseconds | UnsetType = UNSET


class GenerateAnswer(Measured, kw_only=True):
    """The answer of /api/generate, or one piece of its stream."""

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
    """The answer of /api/chat, or one piece of its stream."""

    message: OllamaMessage
    logprobs: OllamaTokens = UNSET


class Clock:
    """The durations of one request, in nanoseconds."""

    def __init__(self) -> None:
        self._began = self._loaded = self._first = self._ended = time.perf_counter_ns()

    def loaded(self) -> None:
        """Note that the model is loaded."""
        self._loaded = self._first = self._ended = time.perf_counter_ns()

    def first(self) -> None:
        """Note the first token: the prompt has been read."""
        self._first = self._ended = time.perf_counter_ns()

    def ended(self) -> None:
        self._ended = time.perf_counter_ns()

    def figures(self, end: End) -> dict[str, int]:
        """Return the durations and token counts. No duration is 0: clients divide by them."""
        return {
            "total_duration": max(1, self._ended - self._began),
            "load_duration": max(1, self._loaded - self._began),
            "prompt_eval_count": end.usage.prompt_tokens,
            "prompt_eval_duration": max(1, self._first - self._loaded),
            "eval_count": end.usage.completion_tokens,
            "eval_duration": max(1, self._ended - self._first),
        }


class OllamaFormatter(abc.ABC):
    """Formats one answer.

    A call is sent once it is complete, as its arguments are an object here; one that was cut off is left out. Logprobs come
    with the step that brought the token, even where its text is held back.
    """

    def __init__(self, turn: Turn, model: str, clock: Clock) -> None:
        self._reader = Reader(turn)
        self._model = model
        self._clock = clock
        self._deltas: list[Delta] = []
        self._logprobs: list[TokenLogprob] = []
        self._call: list[CallStart | CallArguments] = []
        self._end: End | None = None
        self._begun = False

    @abc.abstractmethod
    def piece(self, text: str, **more: Any) -> dict[str, Any]:
        """Return the fields that differ between the routes; `more` are `thinking` and `tool_calls`."""

    def read(self, items: list[Item]) -> Iterator[News]:
        """Yield the content of the items, and set the clock."""
        if items and not self._begun:
            self._begun = True
            self._clock.first()
        for news in self._reader.read(items):
            if news.end is not None:
                self._end = news.end
                self._clock.ended()
            yield news

    def take(self, items: list[Item]) -> None:
        """Read the items for `whole`."""
        for news in self.read(items):
            self._deltas += news.deltas
            self._logprobs += news.event.logprobs

    def whole(self) -> dict[str, Any]:
        """Return the answer in one piece."""
        whole = gather(self._deltas)
        starts = {delta.id: delta for delta in self._deltas if isinstance(delta, CallStart)}
        calls = [body for call in whole.calls if (body := _call(starts[call.id], call.arguments))]
        more = {"thinking": whole.reasoning} if whole.reasoning else {}
        piece = self.piece(whole.text, **more, **({"tool_calls": calls} if calls else {}))
        logprobs = {"logprobs": ollama_logprobs(self._logprobs)} if self._logprobs else {}
        return self._object(piece, **logprobs, **self._ending())

    def encode(self, items: list[Item]) -> bytes:
        bodies: list[dict[str, Any]] = []
        for news in self.read(items):
            start = len(bodies)
            for delta in news.deltas:
                if not isinstance(delta, CallArguments):
                    bodies += self._flush()
                match delta:
                    case Text(text):
                        bodies.append(self._part(text))
                    case Reasoning(text):
                        bodies.append(self._part("", thinking=text))
                    case CallStart() | CallArguments():
                        self._call.append(delta)
            if news.end is not None:
                bodies += self._flush()
            if news.event.logprobs:  # the first object has them; without content, an empty one
                bodies[start:] = bodies[start:] or [self._part("")]
                bodies[start]["logprobs"] = ollama_logprobs(news.event.logprobs)
        return b"".join(map(line, bodies))

    def end(self) -> bytes:
        return line(self._object(self.piece(""), **self._ending()))

    def fail(self, error: Exception) -> bytes:
        return line(ollama_body(error))

    def ping(self) -> bytes:
        return line(self._part(""))

    def _flush(self) -> Iterator[dict[str, Any]]:
        """Yield the call that is complete now, if any."""
        if self._call:
            [call] = gather(self._call).calls
            body = _call(self._call[0], call.arguments)
            self._call = []
            if body is not None:
                yield self._part("", tool_calls=[body])

    def _part(self, text: str, **more: Any) -> dict[str, Any]:
        """Return an object of a stream that is not the last."""
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
    """Return the current time as Ollama writes it."""
    return rfc3339(datetime.datetime.now(datetime.timezone.utc))


def rfc3339(moment: datetime.datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _call(start: CallStart | CallArguments, written: str) -> dict[str, Any] | None:
    """Return a call whose arguments are complete, else None."""
    assert isinstance(start, CallStart)
    try:
        arguments = loads(written)
    except ValueError:
        return None
    function = {"index": start.index, "name": start.name, "arguments": arguments}
    return {"id": start.id, "function": function} if isinstance(arguments, dict) else None


def ollama_logprobs(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return OpenAI's objects without an empty list of alternatives."""
    return [{key: value for key, value in each.items() if key != "top_logprobs" or value} for each in token_logprobs(logprobs)]
