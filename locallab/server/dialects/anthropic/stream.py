"""Messages of Anthropic's dialect: whole, or in events."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from locallab.chat.deltas import CallArguments, CallStart, Reasoning, Text
from locallab.chat.json_text import loads
from locallab.chat.turn import Turn
from locallab.engine.request import Usage
from locallab.server.dialects.anthropic.errors import anthropic_body
from locallab.server.inference.generation import Collector, Item
from locallab.server.inference.reader import End, Reader, read_whole
from locallab.server.streaming import typed_event

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class TextBlock(msgspec.Struct, tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, tag="thinking"):
    thinking: str
    signature: Annotated[str, Meta(description="always empty, and not checked when it comes back")]


class ToolUseBlock(msgspec.Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class CacheCreation(msgspec.Struct):
    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


class MessageUsage(msgspec.Struct):
    """Token counts of the request; cached tokens are counted apart from the input."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    server_tool_use: None
    cache_creation: CacheCreation
    service_tier: Literal["standard"]


class MessageAnswer(msgspec.Struct):
    """The answer of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: Annotated[str | None, Meta(description="the stop sequence that ended the answer")]
    container: None
    usage: MessageUsage


SERVICE = {
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "service_tier": "standard",
}
"""What the usage of a message has besides that of an event: no prompt is charged for the cache."""


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return the usage of an event; with SERVICE it is a MessageUsage."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "server_tool_use": None,
    }


def _message(model: str, content: Sequence[dict[str, Any]]) -> dict[str, Any]:
    head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}
    return {**head, "content": content, "container": None}


def _ending(end: End, stop: str | None) -> dict[str, Any]:
    reason = STOP_REASONS[end.finish_reason]
    return {"stop_reason": "stop_sequence" if stop and reason == "end_turn" else reason, "stop_sequence": stop}


def _input(arguments: str) -> Any:
    """Parse a call's arguments; a call that was cut off has none."""
    try:
        found = loads(arguments)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class AnthropicFormatter(Collector):
    """Formats a message. In a stream it starts, its blocks start, grow and stop one after the other, and it stops."""

    def __init__(self, turn: Turn, model: str, *, prompt_tokens: int) -> None:
        super().__init__()
        self._turn = turn
        self._reader = Reader(turn)
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._started = False
        self._block: str | None = None  # the open block: its type, or a call with its index
        self._n_blocks = 0

    def whole(self) -> dict[str, Any]:
        [answer] = self.finished()
        whole, end = read_whole(self._turn, answer)
        thinking = [{"type": "thinking", "thinking": whole.reasoning, "signature": ""}] if whole.reasoning else []
        text = [{"type": "text", "text": whole.text}] if whole.text or not whole.calls else []
        calls = [{"type": "tool_use", "id": c.id, "name": c.name, "input": _input(c.arguments)} for c in whole.calls]
        message = _message(self._model, [*thinking, *text, *calls])
        return {**message, **_ending(end, answer.stop), "usage": {**usage_body(end.usage), **SERVICE}}

    def encode(self, items: list[Item]) -> bytes:
        events = [*self._start()]
        for news in self._reader.read(items):
            for delta in news.deltas:
                match delta:
                    case Text(text):
                        events += self._open("text", {"type": "text", "text": ""})
                        events.append(self._grow({"type": "text_delta", "text": text}))
                    case Reasoning(text):
                        events += self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                        events.append(self._grow({"type": "thinking_delta", "thinking": text}))
                    case CallStart(index, id, name):
                        events += self._open(f"call {index}", {"type": "tool_use", "id": id, "name": name, "input": {}})
                    case CallArguments(_, text):
                        events.append(self._grow({"type": "input_json_delta", "partial_json": text}))
            if news.end is not None:
                if self._block is None and self._n_blocks == 0:
                    events += self._open("text", {"type": "text", "text": ""})
                events += self._close()
                ending, usage = _ending(news.end, news.event.stop), usage_body(news.end.usage)
                events.append(typed_event({"type": "message_delta", "delta": ending, "usage": usage}))
        return b"".join(events)

    def end(self) -> bytes:
        return typed_event({"type": "message_stop"})

    def fail(self, error: Exception) -> bytes:
        return typed_event(anthropic_body(error))

    def ping(self) -> bytes:
        return b"".join(self._start()) + typed_event({"type": "ping"})

    def _start(self) -> Iterator[bytes]:
        """Yield the event that comes first, once."""
        if not self._started:
            self._started = True
            usage = {**usage_body(Usage(self._prompt_tokens, 0, 0)), **SERVICE}
            start = {**_message(self._model, []), "stop_reason": None, "stop_sequence": None, "usage": usage}
            yield typed_event({"type": "message_start", "message": start})

    def _open(self, block: str, content: dict[str, Any]) -> Iterator[bytes]:
        if self._block == block:
            return
        yield from self._close()
        self._block = block
        yield typed_event({"type": "content_block_start", "index": self._n_blocks, "content_block": content})

    def _grow(self, delta: dict[str, Any]) -> bytes:
        return typed_event({"type": "content_block_delta", "index": self._n_blocks, "delta": delta})

    def _close(self) -> Iterator[bytes]:
        if self._block is not None:
            if self._block == "thinking":
                yield self._grow({"type": "signature_delta", "signature": ""})
            yield typed_event({"type": "content_block_stop", "index": self._n_blocks})
            self._n_blocks += 1
            self._block = None
