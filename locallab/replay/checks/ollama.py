"""Checks of Ollama's streams."""

from __future__ import annotations

import json

from locallab.replay.exchange import Reply
from locallab.replay.message import ToolCall, WholeMessage, checked
from locallab.replay.strict_reader import need, take, value


@checked
def ollama_stream(answer: Reply) -> WholeMessage:
    """Read the lines of a chat."""
    kind = answer.headers.get("content-type", "")
    need(kind.startswith("application/x-ndjson"), f"content type {kind!r}, not application/x-ndjson")
    lines = [value(line) for line in answer.text.splitlines()]
    ends = [take(line, "done", bool) for line in lines]
    need(ends[-1:] == [True] and not any(ends[:-1]), "not the last line alone is done")
    message = WholeMessage(model=take(lines[-1], "model", str))
    for line in lines:
        take(line, "created_at", str)
        message.content += take(line, "message.content", str)
        for call in line["message"].get("tool_calls") or ():
            arguments = json.dumps(take(call, "function.arguments", dict))
            message.calls.append(ToolCall("", take(call, "function.name", str), arguments))
    for name in ("prompt_eval_count", "eval_count", "total_duration"):
        take(lines[-1], name, int)
    message.finish_reason = "tool_calls" if message.calls else take(lines[-1], "done_reason", str)
    return message
