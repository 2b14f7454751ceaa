"""What `locallab chat` shows of an answer: its text, its calls of tools, and figures about it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import click

from locallab.cli.tables import note
from locallab.cli.terminal.conversation import Pieces, Talk, described
from locallab.cli.terminal.markdown_view import Reasoning, harmless, writing


@dataclasses.dataclass
class View:
    """What the user wants to see: the reasoning, and with `stats` the figures of each answer."""

    reasoning: Reasoning = "show"
    stats: bool = False


def say(text: str) -> None:
    """Print a secondary message in which there may be text of a model, a server or a file."""
    note(harmless(text))


def show(talk: Talk, answer: Pieces, view: View, typed: bool) -> None:
    """Print an answer of `talk`. Raises LocalLabError and KeyboardInterrupt; what came before is shown then."""
    reason = first = timings = None
    usage: Mapping[str, Any] = {}
    began = time.monotonic()
    with contextlib.closing(answer), writing(view.reasoning) as writer:
        for piece in answer:
            if first is None and (piece.text or piece.thought or piece.calls):
                first = time.monotonic() - began
            writer.think(piece.thought)
            writer.write(piece.text)
            reason = piece.finish_reason or reason
            usage, timings = piece.whole or usage, piece.timings or timings
    show_calls(talk)
    if reason == "length":
        note("(truncated: --max-tokens, /set max_tokens or the context is used up)")
    if view.stats and timings:
        note(figures(usage["usage"], timings, first))
    if typed:
        click.echo()


def show_calls(talk: Talk) -> None:
    """Print the calls of tools that have no result yet."""
    for call in talk.open_calls:
        say(f"call of {described(call)}")
    if talk.open_calls:
        say(f"the next message is the result of {talk.open_calls[0]['function']['name']}")


def figures(usage: Mapping[str, Any], timings: Mapping[str, Any], first: float | None) -> str:
    """Return a line of an answer's figures. `first` are the seconds until something came, the time in the queue included; None
    if nothing did."""
    cached, prompt = usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]
    tokens, rate = usage["completion_tokens"], timings["predicted_per_second"]
    parts = [
        f"{tokens:,} token{'' if tokens == 1 else 's'}" + (f" at {rate:,.1f} tokens/s" if rate else ""),
        "" if first is None else f"the first after {first:.2f} s",
        f"{cached:,} of {prompt:,} tokens of the prompt cached",
    ]
    return "; ".join(filter(None, parts))
