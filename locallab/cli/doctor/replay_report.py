"""`locallab doctor --clients`: replays what clients of other makers send to a server, and tells which could live with it."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

import click

from locallab.cli.api_client import ApiClient

if TYPE_CHECKING:
    from locallab.cli.doctor.replay import Outcome

SIGNS = {"ok": "[green]ok[/]  ", "fail": "[red]fail[/]", "skip": "[yellow]skip[/]"}


def report(url: str | None, key: str | None, as_json: bool) -> int:
    """Asks the server at `url`, or the one on this machine, and prints what came of it; the exit status: 1 if one fails.

    Raises NoServer, ServerError.
    """
    from locallab.cli.doctor.replay import EXCHANGES, replay

    found = []
    with ApiClient(url, key) as server, server.keyless() as http:
        for outcome in replay(http, key, EXCHANGES):
            found.append(outcome)
            if not as_json:
                _print(outcome)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(outcome) for outcome in found]))
    else:
        click.echo(", ".join(f"{sum(each.status == sign for each in found)} {sign}" for sign in SIGNS), err=True)
    return 1 if any(outcome.status == "fail" for outcome in found) else 0


def _print(outcome: Outcome) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(f"{SIGNS[outcome.status]}  {outcome.client.ljust(13)}  {outcome.doing}")
    if outcome.reason:
        console.print(f"      {' ' * 13}  [bold]→[/] {escape(outcome.reason)}")
