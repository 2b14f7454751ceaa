"""Checks of Anthropic's messages, complete or streamed."""

from __future__ import annotations

import json
from typing import Any

from locallab.replay.exchange import Reply, Unmet
from locallab.replay.message import ToolCall, WholeMessage, checked
from locallab.replay.strict_reader import named_events, need, take, value

STOP_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
BLOCKS = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}
"""Types of blocks, and the field that a delta of each has."""


@checked
def message(answer: Reply) -> WholeMessage:
    body = value(answer.text)
    found = _head(body)
    for block in body["content"]:
        _open(found, block)
        if block["type"] == "tool_use":
            found.calls[-1].arguments = json.dumps(take(block, "input", dict))
    found.finish_reason = _stop_reason(body)
    take(body, "usage.output_tokens", int)
    return found


@checked
def message_stream(answer: Reply) -> WholeMessage:
    """Read the events of a message. Blocks start, grow and stop in turn, each with its index."""
    first, *events = [event for event in named_events(answer) if event["type"] != "ping"]
    need(first["type"] == "message_start", f"the first event is {first['type']}, not message_start")
    need([e["type"] for e in events[-2:]] == ["message_delta", "message_stop"], "the end is not message_delta, message_stop")
    found = _head(take(first, "message", dict))
    found.finish_reason = _stop_reason(take(events[-2], "delta", dict))
    take(events[-2], "usage.output_tokens", int)
    count, kind = 0, None
    for event in events[:-2]:
        need(take(event, "index", int) == count, f"the index of block {count} is {event['index']}")
        step = event["type"]
        if step == "content_block_start" and kind is None:
            kind = _open(found, take(event, "content_block", dict))
        elif step == "content_block_delta" and kind is not None:
            delta = take(event, "delta", dict)
            if take(delta, "type", str) != "signature_delta":
                _grow(found, kind, delta)
        elif step == "content_block_stop" and kind is not None:
            count, kind = count + 1, None
        else:
            raise Unmet(f"{step} comes where a block {'is open' if kind else 'has ended'}")
    return found


def _head(body: Any) -> WholeMessage:
    need(take(body, "role", str) == "assistant", f"the role is {body['role']!r}, not 'assistant'")
    take(body, "id", str)
    take(body, "content", list)
    take(body, "usage.input_tokens", int)
    return WholeMessage(model=take(body, "model", str))


def _open(found: WholeMessage, block: Any) -> str:
    """Add a block, and return its type."""
    kind: str = take(block, "type", str)
    need(kind in BLOCKS, f"a block of the type {kind!r}")
    if kind == "tool_use":
        found.calls.append(ToolCall(take(block, "id", str), take(block, "name", str), ""))
    else:
        _grow(found, kind, block)
    return kind


def _grow(found: WholeMessage, kind: str, part: Any) -> None:
    """Append the text of a block or a delta."""
    text = take(part, BLOCKS[kind], str)
    if kind == "tool_use":
        found.calls[-1].arguments += text
    elif kind == "text":
        found.content += text
    else:
        found.reasoning += text


def _stop_reason(body: Any) -> str:
    reason = take(body, "stop_reason", str)
    need(reason in STOP_REASONS, f"the stop reason {reason!r} is none of {', '.join(STOP_REASONS)}")
    return STOP_REASONS[reason]
