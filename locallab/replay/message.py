"""A model's answer in any dialect, and requirements on it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from locallab.replay.exchange import Check, Reply
from locallab.replay.strict_reader import need, shortened, status, value


@dataclasses.dataclass(slots=True)
class ToolCall:
    """A call of a tool. `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclasses.dataclass(slots=True)
class WholeMessage:
    """A complete answer: the first of `n_choices`, with a finish reason in OpenAI's terms."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = dataclasses.field(default_factory=list)
    finish_reason: str = ""
    model: str = ""
    n_choices: int = 1
    logprobs: bool = False


Wish = Callable[[WholeMessage], None]
"""A requirement on an answer. Raises Unmet."""


def calls(name: str, **allowed: tuple[str, ...]) -> Wish:
    """Require at least one call, all of `name`, with exactly the arguments `allowed` and one of the values of each."""

    def check(message: WholeMessage) -> None:
        need(message.finish_reason == "tool_calls", f"finish reason {message.finish_reason!r}, not 'tool_calls'")
        need(message.calls, "no call, though one is required")
        for call in message.calls:
            need(call.name == name, f"called {call.name!r}, not {name!r}")
            arguments = _object(call.arguments)
            valid = arguments.keys() == allowed.keys() and all(arguments[key] in allowed[key] for key in allowed)
            need(valid, f"arguments that the tool's schema forbids: {shortened(call.arguments)}")

    return check


def known_calls(*names: str) -> Wish:
    """Require that calls, if any, are of `names` and have an object of arguments; the last one may be truncated."""

    def check(message: WholeMessage) -> None:
        truncated = message.finish_reason == "length"
        as_calls = truncated or message.finish_reason == "tool_calls"
        need(not message.calls or as_calls, f"calls, but finish reason {message.finish_reason!r}")
        for call in message.calls:
            need(call.name in names, f"called {call.name!r}, which is not a tool")
            if not (truncated and call is message.calls[-1]):
                _object(call.arguments)

    return check


def one_call_at_most(message: WholeMessage) -> None:
    need(len(message.calls) <= 1, f"{len(message.calls)} calls at once, which the request forbids")


def no_calls(message: WholeMessage) -> None:
    need(not message.calls, "calls, which the request forbids")


def says_json(**kinds: type) -> Wish:
    """Require an object of exactly these members and types as content."""

    def check(message: WholeMessage) -> None:
        found = _object(message.content)
        valid = found.keys() == kinds.keys() and all(type(found[key]) is kind for key, kind in kinds.items())
        need(valid, f"an answer that its schema forbids: {shortened(message.content)}")

    return check


def answers(n: int) -> Wish:
    return lambda message: need(message.n_choices == n, f"{message.n_choices} answers, not {n}")


def has_logprobs(message: WholeMessage) -> None:
    need(message.logprobs, "no logprobs, which were requested")


def is_model(name: str) -> Wish:
    """Require the requested model name in the answer."""
    return lambda message: need(message.model == name, f"model {message.model!r}, not the requested {name!r}")


def _object(text: str) -> Mapping[str, Any]:
    found = value(text)
    need(isinstance(found, dict), f"not an object: {shortened(json.dumps(found))}")
    return found  # type: ignore[no-any-return]


def checked(read: Callable[[Reply], WholeMessage]) -> Callable[..., Check]:
    """Turn a reader of successful replies into a function from wishes to a check. Use as a decorator."""

    def check_of(*wishes: Wish) -> Check:
        def check(answer: Reply) -> None:
            status(answer, 200)
            message = read(answer)
            for wish in wishes:
                wish(message)

        return check

    return check_of
