"""Shows an answer while it comes: on a terminal as Markdown, block by block; elsewhere as it is."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.segment import Segment

EVERY = 1 / 12
"""Seconds between two drawings."""

MARGIN = 2
"""Lines of the terminal that a block still growing leaves free."""

_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})


class Writer(Protocol):
    """Is given the pieces of one answer."""

    def think(self, text: str) -> None:
        """What the model says to itself."""

    def write(self, text: str) -> None:
        """What it answers."""


@contextlib.contextmanager
def writing() -> Iterator[Writer]:
    """A Writer on stdout. On leaving all is shown that came, whatever the reason."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_dumb_terminal:
            with _Formatted(console) as formatted:
                yield formatted
            return
    with plain() as writer:
        yield writer


@contextlib.contextmanager
def plain() -> Iterator[Writer]:
    """As `writing`, without Markdown wherever it goes."""
    writer = _Plain()
    try:
        yield writer
    finally:
        writer.end()


def harmless(text: str) -> str:
    """The text without control characters: no model shall send commands to a terminal."""
    return text.translate(_CONTROLS)


def parts(text: str) -> list[str]:
    """The blocks of Markdown: paragraphs, lists and so on; joined they are the text. Pure."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt().enable("strikethrough").enable("table").parse(text)  # as rich reads it
    starts = [token.map[0] for token in tokens if token.level == 0 and token.map]
    lines = io.StringIO(text).readlines()  # at line feeds only, as Markdown does
    return ["".join(lines[start:end]) for start, end in pairwise([0, *starts[1:], len(lines)])]


def settled(text: str) -> int:
    """How many characters of Markdown that is still growing can be shown for good: all blocks but the last. Pure.

    Only whole lines count: "2" may go on as "2." and belong to the list above it.
    """
    whole = text[: text.rfind("\n") + 1]
    return len(whole) - len(parts(whole)[-1])


class _Plain:
    def __init__(self) -> None:
        self._last = ""
        self._terminal = sys.stdout.isatty()

    def think(self, text: str) -> None:
        """Not shown: it is no part of the answer."""

    def write(self, text: str) -> None:
        self._last = text or self._last
        click.echo(harmless(text) if self._terminal else text, nl=False)

    def end(self) -> None:
        if self._last and not self._last.endswith("\n"):
            click.echo()


class _Formatted:
    """What still grows is drawn again and again, from a thread of its own, below what is set. `_lock` is held for whatever
    reaches the terminal: rich's own thread and its print can come between each other."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        self._console = console
        self._lock = threading.RLock()
        self._thought = self._text = ""
        self._apart = False  # whether an empty line goes before the next block
        self._waiting = Spinner("dots", style="dim")
        self._live = Live(console=console, transient=True, auto_refresh=False, get_renderable=self._growing)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="writing", daemon=True)

    def __enter__(self) -> _Formatted:
        self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._live.stop()
        self._set(len(self._text))

    def think(self, text: str) -> None:
        with self._lock:
            self._thought += harmless(text)

    def write(self, text: str) -> None:
        with self._lock:
            self._text += harmless(text)
        if "\n" in text and (complete := settled(self._text)):
            self._set(complete)

    def _draw(self) -> None:
        while not self._stopped.wait(EVERY):
            with self._lock:
                self._live.refresh()

    def _set(self, length: int) -> None:
        """Shows so many characters for good."""
        from rich.segment import SegmentLines

        with self._lock:
            blocks = _blocks(self._thought, self._text[:length])
            self._thought, self._text = "", self._text[length:]
            for block in blocks:
                self._console.print(SegmentLines([*self._gap(), *self._lines(block)], new_lines=True), end="")
                self._apart = True
            self._live.refresh()

    def _gap(self) -> list[list[Segment]]:
        return [[]] if self._apart else []

    def _lines(self, block: RenderableType) -> list[list[Segment]]:
        """As drawn, without the empty lines that rich puts around some blocks and not around others."""
        lines = self._console.render_lines(block, pad=False)
        full = [
            index
            for index, line in enumerate(lines)
            if any(each.text.strip() or (each.style and each.style.bgcolor) for each in line)
        ]
        return lines[full[0] : full[-1] + 1] if full else []

    def _growing(self) -> RenderableType:
        """The end of what is not set yet, as far as the terminal has room: what rich cannot take back it would show twice."""
        from rich.segment import SegmentLines

        with self._lock:
            blocks = _blocks(self._thought, self._text)
        if not blocks:
            return self._waiting
        lines: list[list[Segment]] = []
        for block in blocks:
            lines += [*self._gap(), *self._lines(block)] if not lines else [[], *self._lines(block)]
        return SegmentLines(lines[-max(1, self._console.height - MARGIN) :], new_lines=True)


def _blocks(thought: str, text: str) -> list[RenderableType]:
    """What there is of both, each as it is shown."""
    from rich.markdown import Markdown
    from rich.text import Text

    thoughts: list[RenderableType] = [Text(thought.strip(), style="dim italic")] if thought.strip() else []
    return [*thoughts, *(Markdown(part) for part in parts(text) if part.strip())]
