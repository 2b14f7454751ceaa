"""Checks of OpenAI's Responses."""

from __future__ import annotations

from locallab.replay.exchange import Reply
from locallab.replay.message import ToolCall, WholeMessage, checked
from locallab.replay.strict_reader import named_events, need, take


@checked
def response_stream(answer: Reply) -> WholeMessage:
    """Read the events of a response."""
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
    message = WholeMessage(model=take(last, "model", str))
    for item in done:
        kind = take(item, "type", str)
        if kind == "message":
            message.content += "".join(take(part, "text", str) for part in take(item, "content", list))
        elif kind == "function_call":
            message.calls.append(ToolCall(take(item, "call_id", str), take(item, "name", str), take(item, "arguments", str)))
        else:
            need(kind == "reasoning", f"an item of the type {kind!r}")
    message.finish_reason = "length" if last["status"] == "incomplete" else "tool_calls" if message.calls else "stop"
    return message
