"""Feeding a parser in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from locallab.chat.deltas import Parser, WholeAnswer, gather


def counting_ids() -> Callable[[], str]:
    """Make ids that are the same in every run."""
    ids = iter(range(1000))
    return lambda: f"call_{next(ids)}"


def parse(parser: Parser, pieces: Iterable[str]) -> WholeAnswer:
    deltas = [delta for piece in pieces for delta in parser.feed(piece)]
    return gather([*deltas, *parser.finish()])


def every_split(make: Callable[[], Parser], raw: str) -> WholeAnswer:
    """Parse `raw`: whole, one character at a time, and cut in two at every place; the results must agree."""
    whole = parse(make(), [raw])
    assert parse(make(), raw) == whole
    for at in range(len(raw) + 1):
        assert parse(make(), [raw[:at], raw[at:]]) == whole, f"cut at {at}"
    return whole
