"""The view of a streamed answer: Markdown, block by block, on a terminal; plain text elsewhere."""

from __future__ import annotations

import contextlib
import io
import sys
import termios
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

import click

from locallab import units

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.segment import Segment

EVERY = 1 / 12
"""Seconds between refreshes."""

MARGIN = 2
"""Lines of the terminal that an unfinished block leaves free."""

Reasoning = Literal["show", "fold", "hide"]
"""How reasoning is shown: whole, as one line with its length and time, or not at all."""

_CONTROLS = dict.fromkeys(
    {*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {ord("\n"), ord("\t")}
)


class Writer(Protocol):
    """A view of one answer."""

    def think(self, text: str) -> None:
        """Show a piece of the reasoning."""

    def write(self, text: str) -> None:
        """Show a piece of the answer."""


@contextlib.contextmanager
def writing(reasoning: Reasoning = "show") -> Iterator[Writer]:
    """Yield a Writer on stdout. On exit, also by an exception, everything received is shown, reasoning as `reasoning` says."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_dumb_terminal:
            with _without_echo(), _Formatted(console, reasoning) as formatted:
                yield formatted
            return
    with plain() as writer:
        yield writer


@contextlib.contextmanager
def _without_echo() -> Iterator[None]:
    """Do not show keys meanwhile, Ctrl-C as ^C among them: they would move the cursor, below lines that are drawn anew."""
    try:
        before = termios.tcgetattr(sys.stdin)
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


@contextlib.contextmanager
def plain() -> Iterator[Writer]:
    """Yield a Writer like `writing`, but always of plain text."""
    writer = _Plain()
    try:
        yield writer
    finally:
        writer.end()


def harmless(text: str) -> str:
    """Return the text without control characters, so that a model cannot control the terminal, and without those that change
    the direction of writing, so that it cannot show another order than there is."""
    return text.translate(_CONTROLS)


def parts(text: str) -> list[str]:
    """Split Markdown into blocks, such as paragraphs and lists; joined they are the text. Pure."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt().enable("strikethrough").enable("table").parse(text)  # the dialect of rich
    starts = [token.map[0] for token in tokens if token.level == 0 and token.map]
    lines = io.StringIO(text).readlines()  # only line feeds end a line of Markdown
    return ["".join(lines[start:end]) for start, end in pairwise([0, *starts[1:], len(lines)])]


def settled(text: str) -> int:
    """Return the length of the final blocks of streamed Markdown: all but the last one. Pure.

    Only whole lines count: "2" may become "2." and belong to the list above it.
    """
    whole = text[: text.rfind("\n") + 1]
    return len(whole) - len(parts(whole)[-1])


class _Plain:
    def __init__(self) -> None:
        self._last = ""
        self._terminal = sys.stdout.isatty()

    def think(self, text: str) -> None:
        """Show nothing: reasoning is not part of the answer."""

    def write(self, text: str) -> None:
        self._last = text or self._last
        click.echo(harmless(text) if self._terminal else text, nl=False)

    def end(self) -> None:
        if self._last and not self._last.endswith("\n"):
            click.echo()


class _Formatted:
    """Markdown whose unfinished end is redrawn by a thread, below the final blocks.

    `_lock` guards the terminal: rich's refresh and print can otherwise interleave.
    """

    def __init__(self, console: Console, reasoning: Reasoning = "show") -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        self._console = console
        self._lock = threading.RLock()
        self._thought = self._text = ""
        self._reasoning = reasoning
        self._began = self._ended = 0.0  # when the first and the last piece of the reasoning came
        self._apart = False  # True if an empty line precedes the next block
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
        self._settle(len(self._text))

    def think(self, text: str) -> None:
        if not text or self._reasoning == "hide":
            return
        with self._lock:
            self._ended = time.monotonic()
            self._began = self._began if self._thought else self._ended
            self._thought += harmless(text)

    def write(self, text: str) -> None:
        with self._lock:
            self._text += harmless(text)
        if "\n" in text and (complete := settled(self._text)):
            self._settle(complete)

    def _draw(self) -> None:
        while not self._stopped.wait(EVERY):
            with self._lock:
                self._live.refresh()

    def _settle(self, length: int) -> None:
        """Print the first `length` characters of the text as final."""
        from rich.segment import SegmentLines

        with self._lock:
            blocks = [*self._thoughts(), *_blocks(self._text[:length])]
            self._thought, self._text = "", self._text[length:]
            for block in blocks:
                self._console.print(SegmentLines([*self._gap(), *self._lines(block)], new_lines=True), end="")
                self._apart = True
            self._live.refresh()

    def _thoughts(self) -> list[RenderableType]:
        """Return the renderable of the reasoning, if there is any."""
        from rich.text import Text

        text = self._thought.strip()
        if text and self._reasoning == "fold":
            text = f"thought for {units.duration(self._ended - self._began)}, {len(text):,} characters; /reasoning shows them"
        return [Text(text, style="dim italic")] if text else []

    def _gap(self) -> list[list[Segment]]:
        return [[]] if self._apart else []

    def _lines(self, block: RenderableType) -> list[list[Segment]]:
        """Render a block without the empty lines that rich puts around some blocks only, and without what an entity such as
        &#8238; has become."""
        from rich.segment import Segment

        lines = [
            [Segment(harmless(each.text), each.style) for each in line] for line in self._console.render_lines(block, pad=False)
        ]
        full = [
            index
            for index, line in enumerate(lines)
            if any(each.text.strip() or (each.style and each.style.bgcolor) for each in line)
        ]
        return lines[full[0] : full[-1] + 1] if full else []

    def _growing(self) -> RenderableType:
        """Render the unfinished blocks, cut to the terminal's height: rich cannot erase lines that scrolled away."""
        from rich.segment import SegmentLines

        with self._lock:
            blocks = [*self._thoughts(), *_blocks(self._text)]
        if not blocks:
            return self._waiting
        lines: list[list[Segment]] = []
        for block in blocks:
            lines += [*self._gap(), *self._lines(block)] if not lines else [[], *self._lines(block)]
        return SegmentLines(lines[-max(1, self._console.height - MARGIN) :], new_lines=True)


def _blocks(text: str) -> list[RenderableType]:
    """Return the renderables of an answer."""
    from rich.markdown import Markdown

    return [Markdown(part) for part in parts(text) if part.strip()]
