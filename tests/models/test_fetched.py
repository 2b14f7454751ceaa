from __future__ import annotations

from pathlib import Path

from locallab.models import HubSource, ModelSpec, Registry, Store, adhoc, fetch
from locallab.models.fetched import fetched
from tests.support.hub_server import Hub


def test_what_was_fetched_by_name_is_found_under_that_name(hub: Hub, store: Store, hub_spec: ModelSpec) -> None:
    registry = Registry()
    registry.add("a test", hub_spec)
    fetch(hub_spec, store)
    assert list(fetched(registry, store)) == []
    fetch(adhoc.spec("hf:acme/tiny:deep/er.gguf"), store)
    [(name, spec)] = fetched(registry, store)
    assert name == "hf:acme/tiny:deep/er.gguf" and spec.source == HubSource("acme/tiny", file="deep/er.gguf")
    registry.resolve(name)
    assert list(fetched(registry, store)) == []


def test_what_is_incomplete_or_strange_is_left_out(hub: Hub, store: Store, tmp_path: Path) -> None:
    spec = adhoc.spec("hf:acme/tiny:tiny.gguf")
    fetch(spec, store).unlink()
    (store.root / "strange").mkdir()
    (store.root / "strange" / ".files.json").write_text("{")
    assert list(fetched(Registry(), store)) == []
