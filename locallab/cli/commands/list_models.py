"""`locallab list`: the models of the registry and those on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from locallab import logs
from locallab.cli.settings_options import server_settings
from locallab.cli.tables import table

if TYPE_CHECKING:
    from locallab.models import ModelSpec, Registry, Store


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="print a list of objects")
@click.option("--check", is_flag=True, help="instead ask the Hub whether the models still stand, and name what has changed")
def command(as_json: bool, check: bool) -> int:
    """List the available models.

    These are the models of the registry and those fetched as hf:owner/repo, which works for any model of the Hub.

    With --check: a line for each source on the Hub whose repository, revision or file has moved, is gone, or has other contents
    than the registry says. Exit status 1 if there is one.
    """
    from locallab.models import Registry, Store

    registry = Registry.discover(server_settings().registry)
    if check:
        return _check(registry, as_json)
    store = Store()
    entries = [_entry(name, spec, store) for name, spec in _listed(registry, store)]
    if as_json:
        click.echo(json.dumps(entries))
    else:
        _print(entries)
    return 0


def _listed(registry: Registry, store: Store) -> Iterator[tuple[str, ModelSpec]]:
    from locallab.models.fetched import fetched

    yield from ((spec.id, spec) for spec in registry.with_adapters)
    yield from fetched(registry, store)


def _entry(name: str, spec: ModelSpec, store: Store) -> dict[str, Any]:
    return {
        "id": name,
        "aliases": list(spec.aliases),
        "size": store.size(spec) or spec.size,
        "on_disk": store.has(spec),
        "context": spec.context,
        "description": spec.description,
        "license": spec.license,
        "modalities": list(spec.takes),
        "memory": spec.memory,
        "recommended": bool(spec.recommended),
    }


def _print(entries: list[dict[str, Any]]) -> None:
    from locallab.units import decimal_bytes

    rows = [
        (
            each["id"],
            decimal_bytes(each["size"]) if each["size"] else "?",
            "yes" if each["on_disk"] else "-",
            f"{each['context']:,}" if each["context"] else "-",
            each["description"],
        )
        for each in entries
    ]
    table(("id", "size", "on disk", "context", "description"), rows)


def _check(registry: Registry, as_json: bool) -> int:
    """Print the sources that do not stand. Raises SourceError if the Hub cannot be asked."""
    from locallab.models.sources.hub_changes import changes

    server = server_settings()
    with logs.configured(server.log_level, server.log_format):
        found = changes(registry)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(each) for each in found]))
    else:
        for each in found:
            click.echo(f"{each.id}: {'' if each.part == 'model' else f'{each.part}: '}{each.problem}")
        if not found:
            click.echo("all models on the Hub stand as the registry says")
    return 1 if found else 0
