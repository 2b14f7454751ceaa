"""`locallab list`: the models of the registry, and which of them are on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from locallab import settings
from locallab.cli.settings_options import layers
from locallab.cli.tables import table
from locallab.errors import ConfigError
from locallab.settings import ServerSettings

if TYPE_CHECKING:
    from locallab.models import ModelSpec, Registry, Store


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="print a list of objects")
def command(as_json: bool) -> None:
    """List the models there are.

    Those of the registry, and those fetched as hf:owner/repo. Any other of the Hub can be named like that too.
    """
    from locallab.models import Registry, Store
    from locallab.units import decimal_bytes

    given = settings.resolve(ServerSettings, *layers(ServerSettings, {}))
    registry, store = Registry.discover(given.registry), Store()
    named = [(spec.id, spec) for spec in registry]
    entries = [_entry(name, spec, store) for name, spec in [*named, *fetched(registry, store)]]
    if as_json:
        click.echo(json.dumps(entries))
        return
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


def fetched(registry: Registry, store: Store) -> Iterator[tuple[str, ModelSpec]]:
    """The models on disk that no registry has, by the names under which they were fetched."""
    from locallab.models import HubSource, adhoc

    known = {store.folder(spec) for spec in registry}
    for folder in sorted(store.root.glob("*")):
        record = None if folder in known else store.record_in(folder)
        if record is None or not isinstance(record.source, HubSource):
            continue
        which = record.source.file or record.source.quantization
        name = f"{adhoc.HUB}{record.source.repo}" + (f":{which}" if which else "")
        try:
            spec = adhoc.spec(name)
        except ConfigError:
            continue
        if store.folder(spec) == folder and store.has(spec):
            yield name, spec


def _entry(name: str, spec: ModelSpec, store: Store) -> dict[str, Any]:
    return {
        "id": name,
        "aliases": list(spec.aliases),
        "size": store.size(spec) or spec.size,
        "on_disk": store.has(spec),
        "context": spec.context,
        "description": spec.description,
        "recommended": spec.recommended,
    }
