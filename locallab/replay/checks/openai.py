"""Checks of OpenAI's chat completions, complete or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from locallab.replay.exchange import Check, Reply, Unmet
from locallab.replay.message import ToolCall, WholeMessage, Wish, checked
from locallab.replay.strict_reader import data_lines, need, take, value

FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter")
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


@checked
def whole(answer: Reply) -> WholeMessage:
    """Read a chat completion."""
    body = value(answer.text)
    usage(take(body, "usage", dict))
    message = take(body, "choices.0.message", dict)
    need(take(message, "role", str) == "assistant", f"the role is {message['role']!r}, not 'assistant'")
    found = WholeMessage(take(message, "content", str, None) or "", message.get("reasoning_content") or "")
    for call in message.get("tool_calls") or ():
        need(take(call, "type", str) == "function", f"a call of the type {call['type']!r}")
        name, arguments = take(call, "function.name", str), take(call, "function.arguments", str)
        found.calls.append(ToolCall(take(call, "id", str), name, arguments))
    found.model, found.n_choices = take(body, "model", str), len(body["choices"])
    found.finish_reason = _finish_reason(take(body, "choices.0.finish_reason", str))
    found.logprobs = bool(body["choices"][0].get("logprobs"))
    return found


def stream(*wishes: Wish, usage: bool = False) -> Check:
    """Check the chunks of a chat completion, which end with the usage if it was requested."""

    @checked
    def chunks(answer: Reply) -> WholeMessage:
        *texts, last = data_lines(answer)
        need(last == "[DONE]", f"the last event is {last}, not [DONE]")
        return _joined([value(text) for text in texts], usage)

    return chunks(*wishes)


def usage(body: Any) -> None:
    """Require whole numbers that add up."""
    counts = [take(body, name, int) for name in USAGE]
    need(counts[0] + counts[1] == counts[2], f"the usage does not add up: {body}")


def _joined(chunks: Sequence[Any], with_usage: bool) -> WholeMessage:
    """Join chunks like LangChain and the AI SDK, which concatenate repeated fields."""
    message = WholeMessage()
    if with_usage:
        *chunks, last = chunks
        need(take(last, "choices", list) == [], "the last chunk is not the usage with an empty list of choices")
        usage(take(last, "usage", dict))
    for number, chunk in enumerate(chunks):
        need(with_usage or not chunk.get("usage"), "a usage that was not requested")
        message.model = take(chunk, "model", str)
        take(chunk, "choices.0.index", int)
        need(not message.finish_reason, "a chunk comes after the finish reason")
        role = take(chunk, "choices.0.delta", dict).get("role")
        need(role == "assistant" if number == 0 else role in (None, "", "assistant"), f"chunk {number} has the role {role!r}")
        _add(message, chunk["choices"][0]["delta"])
        reason = take(chunk, "choices.0.finish_reason", str, None)
        message.finish_reason = _finish_reason(reason) if reason is not None else ""
    need(message.finish_reason, "no chunk has a finish reason")
    return message


def _add(message: WholeMessage, delta: Any) -> None:
    message.content += delta.get("content") or ""
    message.reasoning += delta.get("reasoning_content") or ""
    for call in delta.get("tool_calls") or ():
        index, function = take(call, "index", int), take(call, "function", dict)
        if index == len(message.calls):
            name, arguments = take(call, "function.name", str), function.get("arguments") or ""
            message.calls.append(ToolCall(take(call, "id", str), name, arguments))
        elif index == len(message.calls) - 1:
            need(not call.get("id") and not function.get("name"), "the id or name of a call comes twice")
            message.calls[-1].arguments += take(call, "function.arguments", str)
        else:
            raise Unmet(f"the index of call {len(message.calls)} is {index}")


def _finish_reason(reason: str) -> str:
    need(reason in FINISH_REASONS, f"the finish reason {reason!r} is none of {', '.join(FINISH_REASONS)}")
    return reason
