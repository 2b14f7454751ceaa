"""`locallab cluster`: the configuration of a cluster for Ray Serve, and what a running one does."""

from __future__ import annotations

import json

import click

from locallab.cli import api_client
from locallab.cli.replicas import REPLICA, replica
from locallab.cli.tables import table
from locallab.errors import ServerError


@click.group("cluster")
def command() -> None:
    """Configure a cluster for Ray Serve, and show a running one. `locallab serve --cluster FILE` runs one."""


@command.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--cluster", metavar="FILE", help="configuration to print for Ray Serve, instead of models of the registry")
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="replicas of each named model")
def config(models: tuple[str, ...], cluster: str | None, replicas: int) -> None:
    """Print a configuration for `serve deploy`: of a file, of these models, or of the registry's default model.

    The part `args` is also what `locallab serve --cluster` takes, as a file.
    """
    import yaml

    from locallab.cluster import config as configs
    from locallab.models import Registry

    if cluster is not None and models:
        raise click.UsageError("--cluster: the file names the models; name none beside it")
    found = configs.read(cluster) if cluster else configs.of(models, replicas)
    configs.served(found, Registry.discover(found.server.get("registry")))
    click.echo(yaml.safe_dump(configs.for_serve(found), sort_keys=False), nl=False)


@command.command()
@api_client.options
@click.option("--json", "as_json", is_flag=True, help="print a list of objects")
def status(url: str | None, api_key: str | None, as_json: bool) -> None:
    """List the replicas of a running cluster: where they are, their requests, and what their prefix caches have."""
    with api_client.ApiClient(url, api_key) as server:
        info = server.get("/system/info")
    if "replicas" not in info:
        raise ServerError(f"{server.url} is no cluster: `locallab ps` shows its models")
    replicas = info["replicas"]
    if as_json:
        click.echo(json.dumps(replicas))
        return
    table(REPLICA, map(replica, replicas))
