"""Responses of OpenAI's Responses API: whole, or in events."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from locallab.chat.deltas import CallArguments, CallStart, Delta, Reasoning, Text
from locallab.chat.turn import Turn
from locallab.engine.request import TokenLogprob, Usage
from locallab.server.dialects.answer_fields import Timings, progress_body, timings_body
from locallab.server.dialects.openai.errors import openai_body
from locallab.server.dialects.openai.service import TIER, Tier
from locallab.server.dialects.responses.items import (
    CallItem,
    CallOutput,
    CustomCallItem,
    CustomCallOutput,
    Event,
    MessageItem,
    MessageOutput,
    Output,
    ReasoningItem,
    ReasoningOutput,
    Status,
    SummaryOutput,
    new_id,
)
from locallab.server.dialects.responses.scored_text import ScoredReader, ScoredText
from locallab.server.inference.generation import Item
from locallab.server.inference.reader import End, Reader
from locallab.server.streaming import typed_event


class CachedInput(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int


class ReasonedOutput(msgspec.Struct):
    reasoning_tokens: int


class ResponsesUsage(msgspec.Struct):
    """Token counts of the request."""

    input_tokens: int
    input_tokens_details: CachedInput
    output_tokens: int
    output_tokens_details: ReasonedOutput
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens"]


class ResponseProblem(msgspec.Struct):
    code: str
    message: str


class ResponsesAnswer(msgspec.Struct, kw_only=True):
    """A response, with fields of its request."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: bool
    error: ResponseProblem | None
    incomplete_details: IncompleteDetails | None
    conversation: None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, Any]
    model: str
    output: list[MessageItem | ReasoningItem | CallItem | CustomCallItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt: None
    prompt_cache_key: None
    reasoning: dict[str, Any]
    safety_identifier: None
    service_tier: Tier
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponsesUsage | None
    timings: Timings
    user: str | None


DEFAULTS: Mapping[str, Any] = {
    **dict.fromkeys(("completed_at", "error", "incomplete_details", "usage")),
    **dict.fromkeys(("conversation", "prompt", "max_tool_calls", "prompt_cache_key", "safety_identifier")),
    "service_tier": TIER,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """The fields that all versions of one response have in common; `echo` has those of the request."""

    id: str
    created: int
    echo: dict[str, Any]

    @classmethod
    def make(cls, **echo: Any) -> Frame:
        return cls(new_id("resp"), int(time.time()), echo)

    def body(self, status: str, output: list[Event], **more: Any) -> dict[str, Any]:
        fixed = {"id": self.id, "object": "response", "created_at": self.created, "status": status, "background": False}
        return {**fixed, **DEFAULTS, **self.echo, "output": output, **more}


def error_event(error: Exception) -> dict[str, Any]:
    """Return the body of the event `error`, which ends a stream whose response is not at hand."""
    body = openai_body(error)["error"]
    return {"type": "error", "code": body["code"] or "server_error", "message": body["message"], "param": None}


class ResponsesFormatter:
    """Formats one answer as output items, one after the other. `made` is the response when it has finished.

    `summary`: reasoning is returned as a summary. `scored`: texts come with the logprobs of their tokens.
    """

    def __init__(self, turn: Turn, frame: Frame, *, summary: bool = False, scored: bool = False) -> None:
        self._reader = ScoredReader(turn) if scored else Reader(turn)
        self._frame = frame
        self.made: dict[str, Any] | None = None
        self._reasoning: type[Output] = SummaryOutput if summary else ReasoningOutput
        self._output: list[dict[str, Any]] = []
        self._item: Output | None = None
        self._end = End("stop", Usage(0, 0, 0))
        self._reasoned = 0
        self._sequence = 0
        self._begun = False

    def take(self, items: list[Item]) -> None:
        """Read the items for `whole`."""
        for _ in self._news(items):
            pass

    def whole(self) -> dict[str, Any]:
        """Return the finished response."""
        cut = self._end.finish_reason == "length"
        more = {"incomplete_details": {"reason": "max_output_tokens"} if cut else None, "completed_at": int(time.time())}
        status = "incomplete" if cut else "completed"
        more |= {"usage": usage_body(self._end.usage, self._reasoned), "timings": timings_body([self._end.usage])}
        self.made = self._frame.body(status, self._output, **more)
        return self.made

    def encode(self, items: list[Item]) -> bytes:
        return b"".join(map(self._bytes, (*self._beginning(), *self._news(items))))

    def end(self) -> bytes:
        body = self.whole()
        return self._bytes({"type": f"response.{body['status']}", "response": body, "timings": body["timings"]})

    def fail(self, error: Exception) -> bytes:
        body = openai_body(error)["error"]
        problem = {"code": body["code"] or "server_error", "message": body["message"]}
        failed = {"type": "response.failed", "response": self._frame.body("failed", self._output, error=problem)}
        return b"".join(map(self._bytes, (*self._beginning(), failed)))

    def ping(self) -> bytes:
        if self._begun:
            return self._bytes({"type": "response.in_progress", "response": self._frame.body("in_progress", [])})
        return b"".join(map(self._bytes, self._beginning()))

    def _beginning(self) -> Iterator[Event]:
        """Yield the events that come first, once."""
        if not self._begun:
            self._begun = True
            for kind in ("created", "in_progress"):
                yield {"type": f"response.{kind}", "response": self._frame.body("in_progress", [])}

    def _news(self, items: list[Item]) -> Iterator[Event]:
        for news in self._reader.read(items):
            if news.event.progress is not None:
                progress = {"prompt_progress": progress_body(news.event.progress)}
                yield {"type": "response.in_progress", "response": self._frame.body("in_progress", []), **progress}
            # Reasoning tokens: those that brought reasoning, or nothing while there was some.
            reasons = any(isinstance(delta, Reasoning) for delta in news.deltas)
            if reasons or (not news.deltas and isinstance(self._item, self._reasoning)):
                self._reasoned += len(news.event.token_ids)
            for delta in news.deltas:
                yield from self._delta(delta)
            if news.end is not None:
                self._end = news.end
                if self._item is None and not self._output:  # an empty answer is an empty message
                    yield from self._open(MessageOutput())
                yield from self._close("incomplete" if news.end.finish_reason == "length" else "completed")

    def _delta(self, delta: Delta) -> Iterator[Event]:
        match delta:
            case ScoredText(text, logprobs):
                yield from self._grow(MessageOutput, text, logprobs)
            case Text(text):
                yield from self._grow(MessageOutput, text)
            case Reasoning(text):
                yield from self._grow(self._reasoning, text)
            case CallStart():
                yield from self._open(CustomCallOutput(delta) if delta.custom else CallOutput(delta))
            case CallArguments(_, text):
                assert self._item is not None, "arguments of no call"
                yield self._of(self._item, self._item.grow(text))

    def _grow(self, kind: type[Output], text: str, logprobs: Sequence[TokenLogprob] = ()) -> Iterator[Event]:
        """Append `text` to the current item, or to a new one if that is of another kind."""
        if not isinstance(self._item, kind):
            yield from self._open(kind())
        assert self._item is not None
        yield self._of(self._item, self._item.grow(text, logprobs))

    def _open(self, item: Output) -> Iterator[Event]:
        yield from self._close("completed")
        self._item = item
        yield {"type": "response.output_item.added", "output_index": len(self._output), "item": item.body("in_progress")}
        yield from (self._of(item, event) for event in item.opening())

    def _close(self, status: Status) -> Iterator[Event]:
        if self._item is not None:
            item, self._item = self._item, None
            yield from (self._of(item, event) for event in item.closing())
            body = item.body(status)
            yield {"type": "response.output_item.done", "output_index": len(self._output), "item": body}
            self._output.append(body)

    def _of(self, item: Output, event: Event) -> Event:
        return {**event, "item_id": item.id, "output_index": len(self._output)}

    def _bytes(self, event: Event) -> bytes:
        body = {"type": event["type"], "sequence_number": self._sequence, **event}
        self._sequence += 1
        return typed_event(body)


def usage_body(usage: Usage, reasoned: int) -> dict[str, Any]:
    """Return a ResponsesUsage."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": min(reasoned, usage.completion_tokens)},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
