"""Pieces of an answer: text, reasoning and tool calls. Parsers turn a model's raw text into them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Protocol

from locallab.chat.messages import ToolCall


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallStart:
    """Start of a tool call, once for each call and before its arguments. `index` counts the answer's calls from 0.

    `name` is the tool's own in its namespace.
    """

    index: int
    id: str
    name: str
    custom: bool = False
    namespace: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class CallArguments:
    """Piece of the JSON text of a call's arguments, or of a custom tool's input."""

    index: int
    text: str
    custom: bool = False


Delta = Text | Reasoning | CallStart | CallArguments


class Parser(Protocol):
    """Splitter of a text that arrives in pieces. The deltas add up to the same wherever the text is cut; nothing is lost.

    `feed` returns what is certain so far and holds back what may still become markup; `finish` returns the rest.
    """

    def feed(self, text: str) -> list[Delta]: ...
    def finish(self) -> list[Delta]: ...


class Plain:
    """Parser of an answer without markup."""

    def feed(self, text: str) -> list[Delta]:
        return [Text(text)] if text else []

    def finish(self) -> list[Delta]:
        return []


@dataclasses.dataclass(frozen=True, slots=True)
class WholeAnswer:
    """A complete answer, with its calls in the order in which they were made."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


def gather(deltas: Iterable[Delta]) -> WholeAnswer:
    """Join all deltas of an answer."""
    texts: list[str] = []
    reasoning: list[str] = []
    starts: list[CallStart] = []
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        match delta:
            case Text(text):
                texts.append(text)
            case Reasoning(text):
                reasoning.append(text)
            case CallStart(index):
                starts.append(delta)
                arguments[index] = []
            case CallArguments(index, text):
                arguments[index].append(text)
    calls = tuple(
        ToolCall(start.id, start.name, "".join(arguments[start.index]), start.custom, start.namespace) for start in starts
    )
    return WholeAnswer("".join(texts), "".join(reasoning), calls)


def held_back(text: str, *markers: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of a marker."""
    longest = 0
    for marker in markers:
        for size in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:size]):
                longest = size
                break
    return longest
