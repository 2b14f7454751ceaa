"""`locallab doctor`: looks at everything that LocalLab needs, and says what to do about what is missing."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from locallab import settings
from locallab.cli.options import layers, options
from locallab.settings import ServerSettings

SIGNS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


@click.command("doctor")
@options(ServerSettings, only=("host", "port"))
@click.option("--json", "as_json", is_flag=True, help="print a list of objects of name, status, detail and remedy")
def command(as_json: bool, **flags: Any) -> int:
    """Check Python, compiler, llama.cpp, GPU, memory, disk, port, Hub, token and ngrok; say how to mend what is wrong.

    Each is ok, warn or fail. Exit status 1 if one fails.
    """
    from locallab.cli import checks

    server = settings.resolve(ServerSettings, *layers(ServerSettings, flags))
    found = checks.run(checks.everything(server))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in found]))
    else:
        _print(found)
    return 1 if any(check.status == "fail" for check in found) else 0


def _print(found: Sequence[Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    width = max(len(check.name) for check in found)
    for check in found:
        sign = SIGNS[check.status] + " " * (4 - len(check.status))
        console.print(f"{sign}  {check.name.ljust(width)}  {escape(check.detail)}")
        if check.remedy:
            console.print(f"      {' ' * width}  [bold]→[/] {escape(check.remedy)}")
