"""What a model said, whatever the dialect, and what can be asked of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from locallab.cli.doctor.replay.exchange import Check, Reply
from locallab.cli.doctor.replay.strict_reader import need, shortened, status, value


@dataclasses.dataclass(slots=True)
class Called:
    """A call of a tool. `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclasses.dataclass(slots=True)
class WholeMessage:
    """An answer as a whole. `finish_reason` is in OpenAI's words; `n_choices` says how many answers there were, of which this
    is the first."""

    content: str = ""
    reasoning: str = ""
    calls: list[Called] = dataclasses.field(default_factory=list)
    finish_reason: str = ""
    model: str = ""
    n_choices: int = 1
    logprobs: bool = False


Wish = Callable[[WholeMessage], None]
"""Raises Unmet."""


def calls(name: str, **allowed: tuple[str, ...]) -> Wish:
    """One call or more, each of `name`, with exactly the arguments `allowed`, each of one of these values."""

    def met(said: WholeMessage) -> None:
        need(said.finish_reason == "tool_calls", f"finish reason {said.finish_reason!r}, not 'tool_calls'")
        need(said.calls, "no call, though one must be made")
        for call in said.calls:
            need(call.name == name, f"called {call.name!r}, not {name!r}")
            arguments = _object(call.arguments)
            right = arguments.keys() == allowed.keys() and all(arguments[key] in allowed[key] for key in allowed)
            need(right, f"arguments that the tool's schema forbids: {shortened(call.arguments)}")

    return met


def known_calls(*names: str) -> Wish:
    """Any number of calls, each of a known tool and with an object of arguments, the last one perhaps cut off; or none."""

    def met(said: WholeMessage) -> None:
        cut = said.finish_reason == "length"
        need(not said.calls or cut or said.finish_reason == "tool_calls", f"calls, but finish reason {said.finish_reason!r}")
        for call in said.calls:
            need(call.name in names, f"called {call.name!r}, which is no tool")
            if not (cut and call is said.calls[-1]):
                _object(call.arguments)

    return met


def one_call_at_most(said: WholeMessage) -> None:
    need(len(said.calls) <= 1, f"{len(said.calls)} calls at once, which the request forbids")


def no_calls(said: WholeMessage) -> None:
    need(not said.calls, "calls, which the request forbids")


def says_json(**kinds: type) -> Wish:
    """An object of exactly these members, of these types."""

    def met(said: WholeMessage) -> None:
        found = _object(said.content)
        right = found.keys() == kinds.keys() and all(type(found[key]) is kind for key, kind in kinds.items())
        need(right, f"an answer that its schema forbids: {shortened(said.content)}")

    return met


def answers(n: int) -> Wish:
    return lambda said: need(said.n_choices == n, f"{said.n_choices} answers, not {n}")


def has_logprobs(said: WholeMessage) -> None:
    need(said.logprobs, "no logprobs, which were asked for")


def is_model(name: str) -> Wish:
    """The client finds the model it asked for in the answer."""
    return lambda said: need(said.model == name, f"model {said.model!r}, not {name!r}, which was asked")


def _object(text: str) -> Mapping[str, Any]:
    found = value(text)
    need(isinstance(found, dict), f"no object: {shortened(json.dumps(found))}")
    return found  # type: ignore[no-any-return]


def checked(read: Callable[[Reply], WholeMessage], wishes: Sequence[Wish]) -> Check:
    def check(answer: Reply) -> None:
        status(answer, 200)
        said = read(answer)
        for wish in wishes:
            wish(said)

    return check
