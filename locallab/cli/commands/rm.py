"""`locallab rm`: removes a model's weights from disk."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from locallab import settings
from locallab.cli.settings_options import layers, model_names
from locallab.errors import ConfigError, LocalLabError
from locallab.settings import ServerSettings

if TYPE_CHECKING:
    from locallab.models import ModelSpec, Store


@click.command("rm")
@click.argument("model", shell_complete=model_names)
@click.option("--yes", "-y", is_flag=True, help="do not ask")
def command(model: str, yes: bool) -> None:
    """Remove the weights of MODEL from disk.

    The model stays in the registry and can be fetched again. A model whose entry names a file is refused: that file is yours.
    """
    from locallab.models import Registry, Store
    from locallab.units import decimal_bytes

    given = settings.resolve(ServerSettings, *layers(ServerSettings, {}))
    spec = Registry.discover(given.registry).resolve(model)
    store = Store()
    held = _held(spec, store)
    if not yes:
        _ask(f"Remove {spec.id}, {decimal_bytes(held)}?")
    with store.lock(spec, lambda: click.echo(f"waiting: another process fetches {spec.id}", err=True)):
        freed = store.remove(spec)
    click.echo(f"removed {spec.id}: {freed:,} bytes freed")


def _held(spec: ModelSpec, store: Store) -> int:
    """Bytes that removing the model frees. Raises for a model that cannot be removed."""
    from locallab.models import FileSource

    if isinstance(spec.source, FileSource):
        raise ConfigError(f"{spec.id} is the file {spec.source.path}, which LocalLab did not fetch: delete it yourself")
    held = store.held(spec)
    if not held:
        raise LocalLabError(f"{spec.id} is not on disk: there is nothing to remove")
    return held


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here: give --yes to remove it")
    if not click.confirm(question, err=True):
        raise LocalLabError("nothing was removed")
