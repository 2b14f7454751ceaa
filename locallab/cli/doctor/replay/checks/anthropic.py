"""What clients of Anthropic's messages, OpenAI's Responses and Ollama's chat need of an answer, whole or streamed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from locallab.cli.doctor.replay.exchange import Check, Reply, Unmet
from locallab.cli.doctor.replay.message import Called, WholeMessage, Wish, checked
from locallab.cli.doctor.replay.strict_reader import named_events, need, take, value

STOP_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
BLOCKS = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}
"""Types of blocks, and what a delta of each brings."""


def message(*wishes: Wish) -> Check:
    """A message of Anthropic's shape."""
    return checked(_message, wishes)


def message_stream(*wishes: Wish) -> Check:
    """The events of one."""
    return checked(_message_events, wishes)


def _message(answer: Reply) -> WholeMessage:
    body = value(answer.text)
    said = _head(body)
    for block in body["content"]:
        _add_block(said, block)
        if block["type"] == "tool_use":
            said.calls[-1].arguments = json.dumps(take(block, "input", dict))
    said.finish_reason = _stop_reason(body)
    take(body, "usage.output_tokens", int)
    return said


def _message_events(answer: Reply) -> WholeMessage:
    first, *events = [event for event in named_events(answer) if event["type"] != "ping"]
    need(first["type"] == "message_start", f"the first event is {first['type']}, not message_start")
    need([e["type"] for e in events[-2:]] == ["message_delta", "message_stop"], "the end is not message_delta, message_stop")
    said = _head(take(first, "message", dict))
    said.finish_reason = _stop_reason(take(events[-2], "delta", dict))
    take(events[-2], "usage.output_tokens", int)
    _read_blocks(said, events[:-2])
    return said


def _read_blocks(said: WholeMessage, events: Sequence[Mapping[str, Any]]) -> None:
    """Blocks start, grow and stop one after the other, each with its index."""
    count, kind = 0, None
    for event in events:
        need(take(event, "index", int) == count, f"the index of block {count} is {event['index']}")
        step = event["type"]
        if step == "content_block_start" and kind is None:
            _add_block(said, take(event, "content_block", dict))
            kind = event["content_block"]["type"]
        elif step == "content_block_delta" and kind is not None:
            _grow(said, kind, take(event, "delta", dict))
        elif step == "content_block_stop" and kind is not None:
            count, kind = count + 1, None
        else:
            raise Unmet(f"{step} comes where a block {'is open' if kind else 'has ended'}")


def _head(body: Any) -> WholeMessage:
    need(take(body, "role", str) == "assistant", f"the role is {body['role']!r}, not 'assistant'")
    take(body, "id", str)
    take(body, "content", list)
    take(body, "usage.input_tokens", int)
    return WholeMessage(model=take(body, "model", str))


def _add_block(said: WholeMessage, block: Any) -> None:
    kind = take(block, "type", str)
    need(kind in BLOCKS, f"a block of the type {kind!r}")
    if kind == "tool_use":
        said.calls.append(Called(take(block, "id", str), take(block, "name", str), ""))
    elif kind == "text":
        said.content += take(block, "text", str)
    else:
        said.reasoning += take(block, "thinking", str)


def _grow(said: WholeMessage, kind: str, delta: Any) -> None:
    if take(delta, "type", str) == "signature_delta":
        return
    text = take(delta, BLOCKS[kind], str)
    if kind == "tool_use":
        said.calls[-1].arguments += text
    elif kind == "text":
        said.content += text
    else:
        said.reasoning += text


def _stop_reason(body: Any) -> str:
    reason = take(body, "stop_reason", str)
    need(reason in STOP_REASONS, f"the stop reason {reason!r} is none of {', '.join(STOP_REASONS)}")
    return STOP_REASONS[reason]
