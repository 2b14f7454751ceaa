"""Output items of OpenAI's Responses: their shapes, and their growth in a stream."""

from __future__ import annotations

import abc
import secrets
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from locallab.chat.deltas import CallStart
from locallab.engine.request import TokenLogprob
from locallab.server.dialects.openai.chat import ChatToken
from locallab.server.dialects.openai.logprobs import event_logprobs, token_logprobs

Event = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: Annotated[list[ChatToken], Meta(description="if requested: those of the text's tokens")]


class MessageItem(msgspec.Struct, tag="message"):
    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningText(msgspec.Struct):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(msgspec.Struct, tag="reasoning"):
    """The reasoning: in `content`, or in `summary` if the request wants one."""

    id: str
    status: Status
    summary: list[ReasoningText]
    content: list[ReasoningText] | UnsetType = UNSET


class CallItem(msgspec.Struct, tag="function_call"):
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str
    namespace: Annotated[str | UnsetType, Meta(description="that of the function, if it has one")] = UNSET


class CustomCallItem(msgspec.Struct, tag="custom_tool_call"):
    id: str
    status: Status
    call_id: str
    name: str
    input: str
    namespace: Annotated[str | UnsetType, Meta(description="that of the tool, if it has one")] = UNSET


class Output(abc.ABC):
    """An output item while it grows. Its events lack the fields that the stream adds to all."""

    prefix: ClassVar[str]

    def __init__(self) -> None:
        self.id = new_id(self.prefix)
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def grow(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Event:
        """Append a text, with its tokens' logprobs if requested, and return its event."""
        self._texts.append(text)
        self._logprobs += logprobs
        return self.delta(text, logprobs)

    @abc.abstractmethod
    def body(self, status: Status) -> dict[str, Any]: ...
    @abc.abstractmethod
    def opening(self) -> Iterator[Event]: ...
    @abc.abstractmethod
    def delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> Event: ...
    @abc.abstractmethod
    def closing(self) -> Iterator[Event]: ...


class MessageOutput(Output):
    prefix = "msg"

    def body(self, status: Status) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part(self.text, self._logprobs)]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def opening(self) -> Iterator[Event]:
        yield {"type": "response.content_part.added", "content_index": 0, "part": self._part("", ())}

    def delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> Event:
        return {"type": "response.output_text.delta", "content_index": 0, "delta": text, "logprobs": event_logprobs(logprobs)}

    def closing(self) -> Iterator[Event]:
        logprobs = event_logprobs(self._logprobs)
        yield {"type": "response.output_text.done", "content_index": 0, "text": self.text, "logprobs": logprobs}
        yield {"type": "response.content_part.done", "content_index": 0, "part": self._part(self.text, self._logprobs)}

    def _part(self, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": token_logprobs(logprobs)}


class ReasoningOutput(Output):
    prefix = "rs"

    def body(self, status: Status) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part(self.text)]
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": content}

    def opening(self) -> Iterator[Event]:
        yield {"type": "response.content_part.added", "content_index": 0, "part": self._part("")}

    def delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> Event:
        return {"type": "response.reasoning_text.delta", "content_index": 0, "delta": text}

    def closing(self) -> Iterator[Event]:
        yield {"type": "response.reasoning_text.done", "content_index": 0, "text": self.text}
        yield {"type": "response.content_part.done", "content_index": 0, "part": self._part(self.text)}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}


class SummaryOutput(Output):
    """Reasoning as a summary, which here is the reasoning itself."""

    prefix = "rs"

    def body(self, status: Status) -> dict[str, Any]:
        summary = [] if status == "in_progress" else [self._part(self.text)]
        return {"id": self.id, "type": "reasoning", "status": status, "summary": summary}

    def opening(self) -> Iterator[Event]:
        yield {"type": "response.reasoning_summary_part.added", "summary_index": 0, "part": self._part("")}

    def delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> Event:
        return {"type": "response.reasoning_summary_text.delta", "summary_index": 0, "delta": text}

    def closing(self) -> Iterator[Event]:
        yield {"type": "response.reasoning_summary_text.done", "summary_index": 0, "text": self.text}
        yield {"type": "response.reasoning_summary_part.done", "summary_index": 0, "part": self._part(self.text)}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "summary_text", "text": text}


class CallOutput(Output):
    prefix, kind, key = "fc", "function_call", "arguments"

    def __init__(self, start: CallStart) -> None:
        super().__init__()
        self._start = start

    def body(self, status: Status) -> dict[str, Any]:
        named = {"call_id": self._start.id, "name": self._start.name, self.key: "" if status == "in_progress" else self.text}
        namespace = {"namespace": self._start.namespace} if self._start.namespace else {}
        return {"id": self.id, "type": self.kind, "status": status, **named, **namespace}

    def opening(self) -> Iterator[Event]:
        yield from ()

    def delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> Event:
        return {"type": "response.function_call_arguments.delta", "delta": text}

    def closing(self) -> Iterator[Event]:
        yield {"type": "response.function_call_arguments.done", "name": self._start.name, "arguments": self.text}


class CustomCallOutput(CallOutput):
    prefix, kind, key = "ctc", "custom_tool_call", "input"

    def delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> Event:
        return {"type": "response.custom_tool_call_input.delta", "delta": text}

    def closing(self) -> Iterator[Event]:
        yield {"type": "response.custom_tool_call_input.done", "input": self.text}


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"
