"""`locallab doctor`: checks of everything LocalLab needs, with remedies."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click
from click.core import ParameterSource

from locallab.cli import api_client
from locallab.cli.doctor import cache_report, replay_report
from locallab.cli.settings_options import flag, model_names, options, server_settings
from locallab.cli.tables import verdict
from locallab.settings import ServerSettings

MODES = {"cache": ("model", "registry", "path"), "clients": ("url", "api_key"), "": ("host", "port", "redis_url")}
"""The options of each mode; "" are the checks of this machine."""


@click.command("doctor")
@options(ServerSettings, only=("host", "port", "redis_url"))
@click.option("--clients", is_flag=True, help="instead replay the requests of well-known clients to a running server")
@api_client.options
@click.option("--cache", nargs=2, metavar="A.json B.json", help="instead compare two request bodies: what their prompts share")
@click.option(
    "--model",
    metavar="MODEL",
    shell_complete=model_names,
    help="with --cache: model that reads them  [default: the one that A.json names, else the one that serve would choose]",
)
@options(ServerSettings, only=("registry",))
@click.option("--path", metavar="PATH", help="with --cache: the path they are sent to  [default: the one their fields fit]")
@click.option("--json", "as_json", is_flag=True, help="print a list of objects, with --cache an object")
@click.pass_context
def command(
    context: click.Context,
    /,
    clients: bool,
    url: str | None,
    api_key: str | None,
    cache: tuple[str, str] | None,
    path: str | None,
    as_json: bool,
    **flags: Any,
) -> int:
    """Check Python, compiler, llama.cpp, GPU, memory, disk, port, Hub, token, ngrok and a configured Redis; suggest remedies.

    Each is ok, warn or fail. With --clients: replay the requests of editors, agents and libraries to this or any other server,
    and report the answers that would break a client. With --cache: say how many tokens the prefix cache can share between two
    requests, at which field their prompts part, and what to do about it; no server is needed. Exit status 1 if a check fails.
    """
    from locallab.cli.doctor import checks

    if clients and cache:
        raise click.UsageError("--cache cannot be combined with --clients")
    mode = "cache" if cache else "clients" if clients else ""
    for other, names in MODES.items():
        for name in names if other != mode else ():
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                reason = f"requires --{other}" if other else f"cannot be combined with --{mode}"
                raise click.UsageError(f"{flag(name)} {reason}")
    if cache:
        cache_report.report(cache, path, server_settings(**flags), as_json)
        return 0
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
