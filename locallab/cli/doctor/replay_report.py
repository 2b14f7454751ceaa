"""`locallab doctor --clients`: the report on a replay of other clients' requests."""

from __future__ import annotations

import dataclasses
import json

import click

from locallab.cli.api_client import ApiClient
from locallab.cli.tables import verdict


def report(url: str | None, key: str | None, as_json: bool) -> int:
    """Replay the requests to the server at `url`, by default this machine's, and print the outcomes.

    Returns the exit status, 1 if one fails. Raises NoServer, ServerError.
    """
    from locallab.replay import EXCHANGES, replay

    found = []
    with ApiClient(url, key) as server, server.keyless() as http:
        for outcome in replay(http, key, EXCHANGES):
            found.append(outcome)
            if not as_json:
                verdict(outcome.status, outcome.client.ljust(13), outcome.doing, outcome.reason)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(outcome) for outcome in found]))
    else:
        counts = [f"{sum(outcome.status == status for outcome in found)} {status}" for status in ("ok", "fail", "skip")]
        click.echo(", ".join(counts), err=True)
    return 1 if any(outcome.status == "fail" for outcome in found) else 0
