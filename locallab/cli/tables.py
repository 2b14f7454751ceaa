"""Tables, facts and verdicts for people: aligned, cut to the terminal's width, and coloured only there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence

import click

GAP = "  "
COLOURS = {"ok": "green", "warn": "yellow", "skip": "yellow", "fail": "red"}
"""Statuses that `verdict` prints."""


def is_fancy() -> bool:
    """Return whether stdout is a terminal that allows colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def note(text: str) -> None:
    """Print a secondary message, dimmed on a terminal."""
    click.echo(click.style(text, dim=True) if is_fancy() else text)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns. Lines are cut to the width of the terminal."""
    lines = [tuple(heading), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for index, line in enumerate(lines):
        text = GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        if columns is not None and len(text) > columns:
            text = f"{text[: columns - 1]}…"
        click.echo(click.style(text, bold=True) if index == 0 and is_fancy() else text)


def facts(pairs: Iterable[tuple[str, str | None]]) -> None:
    """Print one named fact a line, leaving out those that are None."""
    known = [(name, value) for name, value in pairs if value is not None]
    width = max(len(name) for name, _ in known)
    for name, value in known:
        label = name.ljust(width)
        click.echo(f"{click.style(label, bold=True) if is_fancy() else label}{GAP}{value}")


def verdict(status: str, label: str, text: str, remark: str | None) -> None:
    """Print a status in its colour with a label and a text, and a remark below them."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(f"[{COLOURS[status]}]{status}[/]{' ' * (4 - len(status))}{GAP}{label}{GAP}{escape(text)}")
    if remark:
        console.print(f"    {GAP}{' ' * len(label)}{GAP}[bold]→[/] {escape(remark)}")
