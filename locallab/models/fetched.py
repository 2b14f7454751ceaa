"""The models on disk that a registry lacks: those of the Hub that somebody has fetched by name."""

from __future__ import annotations

from collections.abc import Iterator

from locallab.errors import ConfigError
from locallab.models import adhoc
from locallab.models.registry import Registry
from locallab.models.spec import HubSource, ModelSpec
from locallab.models.store import Store


def fetched(registry: Registry, store: Store) -> Iterator[tuple[str, ModelSpec]]:
    """Yield them with the names under which they were fetched. Reads files."""
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
