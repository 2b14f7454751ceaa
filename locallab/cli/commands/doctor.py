"""`locallab doctor`: looks at everything that LocalLab needs, and says what to do about what is missing."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

from locallab import settings
from locallab.cli import api_client
from locallab.cli.doctor import replay_report
from locallab.cli.settings_options import flag, layers, options
from locallab.settings import ServerSettings

SIGNS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


@click.command("doctor")
@options(ServerSettings, only=("host", "port"))
@click.option("--clients", "ask", is_flag=True, help="instead send a running server what well-known clients send")
@api_client.options
@click.option("--json", "as_json", is_flag=True, help="print a list of objects")
@click.pass_context
def command(context: click.Context, /, ask: bool, url: str | None, api_key: str | None, as_json: bool, **flags: Any) -> int:
    """Check Python, compiler, llama.cpp, GPU, memory, disk, port, Hub, token and ngrok; say how to mend what is wrong.

    Each is ok, warn or fail. With --clients: replays the requests of editors, agents and libraries to a server, this one or
    any other, and tells which answers such a client would break on. Exit status 1 if one fails.
    """
    from locallab.cli.doctor import checks

    _agree(context, ask)
    if ask:
        return replay_report.report(url, api_key, as_json)
    server = settings.resolve(ServerSettings, *layers(ServerSettings, flags))
    found = checks.run(checks.everything(server))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in found]))
    else:
        _print(found)
    return 1 if any(check.status == "fail" for check in found) else 0


def _agree(context: click.Context, ask: bool) -> None:
    """Refuses the options on the command line that only the other kind of check heeds."""
    for name in ("host", "port") if ask else ("url", "api_key"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{flag(name)} {'does not go with' if ask else 'goes with'} --clients")


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
