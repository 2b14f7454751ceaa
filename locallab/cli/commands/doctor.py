"""`locallab doctor`: checks of everything LocalLab needs, with remedies."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click
from click.core import ParameterSource

from locallab.cli import api_client
from locallab.cli.doctor import replay_report
from locallab.cli.settings_options import flag, options, server_settings
from locallab.cli.tables import verdict
from locallab.settings import ServerSettings


@click.command("doctor")
@options(ServerSettings, only=("host", "port"))
@click.option("--clients", is_flag=True, help="instead replay the requests of well-known clients to a running server")
@api_client.options
@click.option("--json", "as_json", is_flag=True, help="print a list of objects")
@click.pass_context
def command(context: click.Context, /, clients: bool, url: str | None, api_key: str | None, as_json: bool, **flags: Any) -> int:
    """Check Python, compiler, llama.cpp, GPU, memory, disk, port, Hub, token and ngrok, and suggest remedies.

    Each is ok, warn or fail. With --clients: replay the requests of editors, agents and libraries to this or any other server,
    and report the answers that would break a client. Exit status 1 if a check fails.
    """
    from locallab.cli.doctor import checks

    for name in ("host", "port") if clients else ("url", "api_key"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{flag(name)} {'cannot be combined with' if clients else 'requires'} --clients")
    if clients:
        return replay_report.report(url, api_key, as_json)
    found = checks.run(checks.everything(server_settings(**flags)))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in found]))
    else:
        width = max(len(check.name) for check in found)
        for check in found:
            verdict(check.status, check.name.ljust(width), check.detail, check.remedy)
    return 1 if any(check.status == "fail" for check in found) else 0
