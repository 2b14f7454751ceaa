"""`locallab rm`: the removal of a model's weights from disk."""

from __future__ import annotations

import sys

import click

from locallab.cli.settings_options import model_names, server_settings
from locallab.errors import ConfigError, LocalLabError


@click.command("rm")
@click.argument("model", shell_complete=model_names)
@click.option("--yes", "-y", is_flag=True, help="skip the confirmation")
def command(model: str, yes: bool) -> None:
    """Remove the weights of MODEL from disk.

    The model stays in the registry and can be fetched again. A model whose entry names your own file is not removed.
    """
    from locallab.models import Registry, Store
    from locallab.units import decimal_bytes

    spec = Registry.discover(server_settings().registry).resolve(model)
    store = Store()
    store.check_removal(spec)
    held = store.held(spec)
    if not yes and not sys.stdin.isatty():
        raise ConfigError("cannot ask for confirmation without a terminal: pass --yes")
    if not yes and not click.confirm(f"Remove {spec.id}, {decimal_bytes(held)}?", err=True):
        raise LocalLabError("nothing was removed")
    with store.lock(spec, lambda: click.echo(f"waiting: another process is fetching {spec.id}", err=True)):
        freed = store.remove(spec)
    click.echo(f"removed {spec.id}: {freed:,} bytes freed")
