"""What clients of Anthropic's messages, OpenAI's Responses and Ollama's chat need of an answer, whole or streamed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from locallab.clients.said import Called, Said, Wish
from locallab.clients.shape import Answer, Check, Unmet
from locallab.clients.wire import named_events, need, status, take, value

STOP_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
BLOCKS = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}
"""Types of blocks, and what a delta of each brings."""


def message(*wishes: Wish) -> Check:
    """A message of Anthropic's shape."""
    return _said(_message, wishes)


def message_stream(*wishes: Wish) -> Check:
    """The events of one."""
    return _said(_message_events, wishes)


def response_stream(*wishes: Wish) -> Check:
    """The events of a response."""
    return _said(_response_events, wishes)


def ollama_stream(*wishes: Wish) -> Check:
    """The lines of a chat in Ollama's shape."""
    return _said(_ollama_lines, wishes)


def _said(read: Callable[[Answer], Said], wishes: Sequence[Wish]) -> Check:
    def check(answer: Answer) -> None:
        status(answer, 200)
        said = read(answer)
        for wish in wishes:
            wish(said)

    return check


def _message(answer: Answer) -> Said:
    body = value(answer.text)
    said = _head(body)
    for block in body["content"]:
        _add_block(said, block)
        if block["type"] == "tool_use":
            said.calls[-1].arguments = json.dumps(take(block, "input", dict))
    said.finish_reason = _stop_reason(body)
    take(body, "usage.output_tokens", int)
    return said


def _message_events(answer: Answer) -> Said:
    first, *events = [event for event in named_events(answer) if event["type"] != "ping"]
    need(first["type"] == "message_start", f"the first event is {first['type']}, not message_start")
    need([e["type"] for e in events[-2:]] == ["message_delta", "message_stop"], "the end is not message_delta, message_stop")
    said = _head(take(first, "message", dict))
    said.finish_reason = _stop_reason(take(events[-2], "delta", dict))
    take(events[-2], "usage.output_tokens", int)
    _read_blocks(said, events[:-2])
    return said


def _read_blocks(said: Said, events: Sequence[Mapping[str, Any]]) -> None:
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


def _head(body: Any) -> Said:
    need(take(body, "role", str) == "assistant", f"the role is {body['role']!r}, not 'assistant'")
    take(body, "id", str)
    take(body, "content", list)
    take(body, "usage.input_tokens", int)
    return Said(model=take(body, "model", str))


def _add_block(said: Said, block: Any) -> None:
    kind = take(block, "type", str)
    need(kind in BLOCKS, f"a block of the type {kind!r}")
    if kind == "tool_use":
        said.calls.append(Called(take(block, "id", str), take(block, "name", str), ""))
    elif kind == "text":
        said.content += take(block, "text", str)
    else:
        said.reasoning += take(block, "thinking", str)


def _grow(said: Said, kind: str, delta: Any) -> None:
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


def _response_events(answer: Answer) -> Said:
    events = list(named_events(answer))
    need(events[0]["type"] == "response.created", f"the first event is {events[0]['type']}, not response.created")
    ended = events[-1]["type"] in ("response.completed", "response.incomplete")
    need(ended, f"the last event is {events[-1]['type']}, not response.completed")
    last = take(events[-1], "response", dict)
    need(take(last, "id", str) == take(events[0], "response.id", str), "the response ends with another id than it began with")
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        take(last, f"usage.{name}", int)
    done = [take(event, "item", dict) for event in events if event["type"] == "response.output_item.done"]
    need(done == take(last, "output", list), "the items of the stream are not those of the response")
    said = Said(model=take(last, "model", str))
    for item in done:
        _add_item(said, item)
    said.finish_reason = "length" if last["status"] == "incomplete" else "tool_calls" if said.calls else "stop"
    return said


def _add_item(said: Said, item: Any) -> None:
    kind = take(item, "type", str)
    if kind == "message":
        said.content += "".join(take(part, "text", str) for part in take(item, "content", list))
    elif kind == "function_call":
        said.calls.append(Called(take(item, "call_id", str), take(item, "name", str), take(item, "arguments", str)))
    else:
        need(kind == "reasoning", f"an item of the type {kind!r}")


def _ollama_lines(answer: Answer) -> Said:
    kind = answer.headers.get("content-type", "")
    need(kind.startswith("application/x-ndjson"), f"content type {kind!r}, not application/x-ndjson")
    lines = [value(line) for line in answer.text.splitlines()]
    ends = [take(line, "done", bool) for line in lines]
    need(ends[-1:] == [True] and not any(ends[:-1]), "not the last line alone is done")
    said = Said(model=take(lines[-1], "model", str))
    for line in lines:
        take(line, "created_at", str)
        said.content += take(line, "message.content", str)
        for call in line["message"].get("tool_calls") or ():
            arguments = json.dumps(take(call, "function.arguments", dict))
            said.calls.append(Called("", take(call, "function.name", str), arguments))
    for name in ("prompt_eval_count", "eval_count", "total_duration"):
        take(lines[-1], name, int)
    said.finish_reason = "tool_calls" if said.calls else take(lines[-1], "done_reason", str)
    return said
