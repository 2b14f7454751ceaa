"""Checks of OpenAI's Responses."""

from __future__ import annotations

from typing import Any

from locallab.cli.doctor.replay.exchange import Check, Reply
from locallab.cli.doctor.replay.message import Called, WholeMessage, Wish, checked
from locallab.cli.doctor.replay.strict_reader import named_events, need, take


def response_stream(*wishes: Wish) -> Check:
    """The events of a response."""
    return checked(_response_events, wishes)


def _response_events(answer: Reply) -> WholeMessage:
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
    said = WholeMessage(model=take(last, "model", str))
    for item in done:
        _add_item(said, item)
    said.finish_reason = "length" if last["status"] == "incomplete" else "tool_calls" if said.calls else "stop"
    return said


def _add_item(said: WholeMessage, item: Any) -> None:
    kind = take(item, "type", str)
    if kind == "message":
        said.content += "".join(take(part, "text", str) for part in take(item, "content", list))
    elif kind == "function_call":
        said.calls.append(Called(take(item, "call_id", str), take(item, "name", str), take(item, "arguments", str)))
    else:
        need(kind == "reasoning", f"an item of the type {kind!r}")
