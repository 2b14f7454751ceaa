"""Shows an answer while it comes: on a terminal as Markdown, each block set for good once it is complete; elsewhere as it is."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MARGIN = 2
"""Lines of the terminal that a block still growing leaves free."""


class Writer(Protocol):
    """Is given the pieces of one answer."""

    def think(self, text: str) -> None:
        """What the model says to itself."""

    def write(self, text: str) -> None:
        """What it answers."""


@contextlib.contextmanager
def writing() -> Iterator[Writer]:
    """A Writer on stdout. On leaving all is shown that came, whatever the reason."""
    writer = _Plain()
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_dumb_terminal:
            with _Formatted(console) as formatted:
                yield formatted
            return
    try:
        yield writer
    finally:
        writer.end()


def settled(text: str) -> int:
    """How many characters of Markdown that is still growing can be shown for good: all blocks but the last. Pure.

    Only whole lines count: "2" may go on as "2." and belong to the list above it.
    """
    from markdown_it import MarkdownIt

    whole = text[: text.rfind("\n") + 1]
    starts = [token.map[0] for token in _markdown(MarkdownIt).parse(whole) if token.level == 0 and token.map and token.nesting >= 0]
    return sum(len(line) for line in whole.splitlines(keepends=True)[: starts[-1]]) if starts else 0


class _Plain:
    def __init__(self) -> None:
        self._last = ""

    def think(self, text: str) -> None:
        """Not shown: it is no part of the answer."""

    def write(self, text: str) -> None:
        self._last = text or self._last
        click.echo(text, nl=False)

    def end(self) -> None:
        if self._last and not self._last.endswith("\n"):
            click.echo()


class _Formatted:
    """What still grows is drawn again and again by rich, from a thread of its own, below what is set."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        self._console = console
        self._lock = threading.Lock()
        self._thought = self._text = ""
        self._apart = False  # whether an empty line goes before the next block
        self._waiting = Spinner("dots", style="dim")
        self._live = Live(console=console, transient=True, refresh_per_second=12, get_renderable=self._growing)

    def __enter__(self) -> _Formatted:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()
        self._set(len(self._text))

    def think(self, text: str) -> None:
        with self._lock:
            self._thought += text

    def write(self, text: str) -> None:
        with self._lock:
            self._text += text
        if "\n" in text and (complete := settled(self._text)):
            self._set(complete)

    def _set(self, length: int) -> None:
        """Shows so many characters for good."""
        with self._lock:
            thought, self._thought = self._thought.strip(), ""
            block, self._text = self._text[:length], self._text[length:]
        for each in (_dim(thought) if thought else None, _formatted(block) if block.strip() else None):
            if each is not None:
                if self._apart:
                    self._console.print()
                self._console.print(each)
                self._apart = True

    def _growing(self) -> RenderableType:
        """The end of what is not set yet, as far as the terminal has room: what rich cannot take back it would show twice."""
        from rich.segment import Segment, SegmentLines

        with self._lock:
            thought, text = self._thought.strip(), self._text
        if not thought and not text.strip():
            return self._waiting
        blocks = [_dim(thought)] if thought else []
        blocks += [_formatted(text)] if text.strip() else []
        lines: list[list[Segment]] = [[]] if self._apart else []
        for each in blocks:
            lines += self._console.render_lines(each, pad=False)
        return SegmentLines(lines[-max(1, self._console.height - MARGIN) :], new_lines=True)


def _dim(text: str) -> RenderableType:
    from rich.text import Text

    return Text(text, style="dim italic")


def _formatted(text: str) -> RenderableType:
    from rich.markdown import Markdown

    return Markdown(text)


def _markdown(kind: type[MarkdownIt]) -> MarkdownIt:
    """Reads as rich does."""
    return kind().enable("strikethrough").enable("table")
