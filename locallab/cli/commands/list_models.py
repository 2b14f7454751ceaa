"""`locallab list`: the models of the registry and those on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from locallab.cli.settings_options import server_settings
from locallab.cli.tables import table
from locallab.errors import ConfigError

if TYPE_CHECKING:
    from locallab.models import ModelSpec, Registry, Store


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="print a list of objects")
def command(as_json: bool) -> None:
    """List the available models.

    These are the models of the registry and those fetched as hf:owner/repo, which works for any model of the Hub.
    """
    from locallab.models import Registry, Store
    from locallab.units import decimal_bytes

    registry, store = Registry.discover(server_settings().registry), Store()
    entries: list[dict[str, Any]] = [
        {
            "id": name,
            "aliases": list(spec.aliases),
            "size": store.size(spec) or spec.size,
            "on_disk": store.has(spec),
            "context": spec.context,
            "description": spec.description,
            "recommended": spec.recommended,
        }
        for name, spec in [*((spec.id, spec) for spec in registry), *fetched(registry, store)]
    ]
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
    """Yield the models on disk that the registry lacks, with the names under which they were fetched."""
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
