"""What clients of OpenAI's chat completions need of an answer, whole or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from locallab.cli.doctor.replay.exchange import Check, Reply, Unmet
from locallab.cli.doctor.replay.message import Called, WholeMessage, Wish
from locallab.cli.doctor.replay.strict_reader import data_lines, need, status, take, value

FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter")
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


def whole(*wishes: Wish) -> Check:
    """A chat completion that is all `wishes` want."""

    def check(answer: Reply) -> None:
        status(answer, 200)
        body = value(answer.text)
        usage(take(body, "usage", dict))
        said = _message(take(body, "choices.0.message", dict))
        said.model, said.n_choices = take(body, "model", str), len(body["choices"])
        said.finish_reason = _finish_reason(take(body, "choices.0.finish_reason", str))
        said.logprobs = bool(body["choices"][0].get("logprobs"))
        for wish in wishes:
            wish(said)

    return check


def stream(*wishes: Wish, usage: bool = False) -> Check:
    """The chunks of a chat completion that is all `wishes` want, with the usage in the end if it was asked for."""

    def check(answer: Reply) -> None:
        status(answer, 200)
        *texts, last = data_lines(answer)
        need(last == "[DONE]", f"the last event is {last}, not [DONE]")
        said = _joined([value(text) for text in texts], usage)
        for wish in wishes:
            wish(said)

    return check


def usage(body: Any) -> None:
    """Whole numbers that add up."""
    counts = [take(body, name, int) for name in USAGE]
    need(counts[0] + counts[1] == counts[2], f"the usage does not add up: {body}")


def _message(message: Any) -> WholeMessage:
    need(take(message, "role", str) == "assistant", f"the role is {message['role']!r}, not 'assistant'")
    said = WholeMessage(take(message, "content", str, None) or "", message.get("reasoning_content") or "")
    for call in message.get("tool_calls") or ():
        need(take(call, "type", str) == "function", f"a call of the type {call['type']!r}")
        name, arguments = take(call, "function.name", str), take(call, "function.arguments", str)
        said.calls.append(Called(take(call, "id", str), name, arguments))
    return said


def _joined(chunks: Sequence[Any], with_usage: bool) -> WholeMessage:
    """The chunks as one message, the way LangChain and the AI SDK put them together: they add up what comes twice."""
    said = WholeMessage()
    if with_usage:
        *chunks, last = chunks
        need(take(last, "choices", list) == [], "the last chunk is not the usage with an empty list of choices")
        usage(take(last, "usage", dict))
    for number, chunk in enumerate(chunks):
        need(with_usage or not chunk.get("usage"), "a usage that was not asked for")
        said.model = take(chunk, "model", str)
        take(chunk, "choices.0.index", int)
        need(not said.finish_reason, "a chunk comes after the finish reason")
        role = take(chunk, "choices.0.delta", dict).get("role")
        need(role == "assistant" if number == 0 else role in (None, "", "assistant"), f"chunk {number} has the role {role!r}")
        _add(said, chunk["choices"][0]["delta"])
        reason = take(chunk, "choices.0.finish_reason", str, None)
        said.finish_reason = _finish_reason(reason) if reason is not None else ""
    need(said.finish_reason, "no chunk has a finish reason")
    return said


def _add(said: WholeMessage, delta: Any) -> None:
    said.content += delta.get("content") or ""
    said.reasoning += delta.get("reasoning_content") or ""
    for call in delta.get("tool_calls") or ():
        index, function = take(call, "index", int), take(call, "function", dict)
        if index == len(said.calls):
            said.calls.append(Called(take(call, "id", str), take(call, "function.name", str), function.get("arguments") or ""))
        elif index == len(said.calls) - 1:
            need(not call.get("id") and not function.get("name"), "the id or name of a call comes twice")
            said.calls[-1].arguments += take(call, "function.arguments", str)
        else:
            raise Unmet(f"the index of call {len(said.calls)} is {index}")


def _finish_reason(reason: str) -> str:
    need(reason in FINISH_REASONS, f"the finish reason {reason!r} is none of {', '.join(FINISH_REASONS)}")
    return reason
