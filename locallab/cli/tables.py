"""Tables and facts for people: aligned, cut to a terminal's width, coloured only there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence

import click

GAP = "  "


def is_fancy() -> bool:
    """Whether stdout is a terminal whose user has nothing against colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def note(text: str) -> None:
    """Prints what is said beside the matter itself."""
    click.echo(click.style(text, dim=True) if is_fancy() else text)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints aligned columns. On a terminal the last one is cut where the line ends."""
    lines = [tuple(heading), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for index, line in enumerate(lines):
        text = GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        shown = _cut(text)
        click.echo(click.style(shown, bold=True) if index == 0 and is_fancy() else shown)


def facts(pairs: Iterable[tuple[str, str | None]]) -> None:
    """Prints one fact a line, its name before it; None is left out."""
    known = [(name, value) for name, value in pairs if value is not None]
    width = max(len(name) for name, _ in known)
    for name, value in known:
        label = name.ljust(width)
        click.echo(f"{click.style(label, bold=True) if is_fancy() else label}{GAP}{value}")


def _cut(text: str) -> str:
    if not sys.stdout.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    return text if len(text) <= columns else f"{text[: columns - 1]}…"
