"""Readers of answers, each as strict as the strictest client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from locallab.replay.exchange import Reply, Unmet

KIND_NAMES: Mapping[type | None, str] = {
    str: "a string",
    int: "a whole number",
    dict: "an object",
    list: "a list",
    bool: "a boolean",
    float: "a number",
    None: "null",
}


def need(met: object, reason: str) -> None:
    """Raise Unmet with `reason` unless `met`."""
    if not met:
        raise Unmet(reason)


def status(answer: Reply, *wanted: int) -> None:
    expected = " or ".join(map(str, wanted))
    need(answer.status in wanted, f"status {answer.status}, not {expected}: {shortened(answer.text)}")


def value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Unmet(f"not JSON: {shortened(text)}") from None


def take(body: Any, path: str, *kinds: type | None) -> Any:
    """Return the value at `path`, such as `choices.0.index`, which must be of one of `kinds`; None is null."""
    found = body
    for step in path.split("."):
        try:
            found = found[int(step) if step.isdigit() else step]
        except (KeyError, IndexError, TypeError):
            raise Unmet(f"no {path} in {shortened(json.dumps(body))}") from None
    expected = " or ".join(KIND_NAMES[kind] for kind in kinds)
    need(any(is_of(found, kind) for kind in kinds), f"{path} is {shortened(json.dumps(found))}, not {expected}")
    return found


def is_of(found: Any, kind: type | None) -> bool:
    """Return whether a value of JSON is of a kind; a boolean is no number."""
    if kind is None or found is None:
        return found is kind
    return isinstance(found, kind) and (kind is bool or not isinstance(found, bool))


def data_lines(answer: Reply) -> Iterator[str]:
    """Yield the `data` of events without comments, ids or names, any of which breaks some client."""
    for lines in blocks(answer):
        need(len(lines) == 1 and lines[0].startswith("data: "), f"no plain data event: {shortened(' | '.join(lines))}")
        yield lines[0].removeprefix("data: ")


def named_events(answer: Reply) -> Iterator[Any]:
    """Yield the JSON of events whose type is both in their name and in their data."""
    for lines in blocks(answer):
        whole = len(lines) == 2 and lines[0].startswith("event: ") and lines[1].startswith("data: ")
        need(whole, f"no event of a name and data: {shortened(' | '.join(lines))}")
        body = value(lines[1].removeprefix("data: "))
        name = lines[0].removeprefix("event: ")
        need(take(body, "type", str) == name, f"an event called {name} has the type {body['type']}")
        yield body


def blocks(answer: Reply) -> Sequence[list[str]]:
    """Return the lines of each event of a stream."""
    kind = answer.headers.get("content-type", "")
    need(kind.startswith("text/event-stream"), f"content type {kind!r}, not text/event-stream: {shortened(answer.text)}")
    whole = answer.text.replace("\r\n", "\n")
    need(whole.strip() and whole.endswith("\n\n"), "the stream is empty or ends in the middle of an event")
    return [block.split("\n") for block in whole.strip("\n").split("\n\n")]


def shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:199]}…"
