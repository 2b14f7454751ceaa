"""Which projector belongs to a model, and what the model takes with it."""

from __future__ import annotations

import logging
from pathlib import Path

import gguf
import msgspec
import pytest

from locallab.errors import ConfigError
from locallab.models import FileSource, HubSource, ModelSpec, Store, adhoc, fetch
from locallab.models.projectors import modalities, projector_of
from locallab.models.quants import projector
from locallab.settings import EngineSettings
from tests.support.hub_server import Hub, Repo
from tests.support.tiny_weights import WEIGHTS

NAME = "hf:acme/tiny:Q4_0"


def made(path: Path, **kinds: bool) -> Path:
    """Write the header of a projector."""
    writer = gguf.GGUFWriter(path, "clip")
    for kind, present in kinds.items():
        writer.add_bool(f"clip.has_{kind}_encoder", present)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def model(folder: Path, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(WEIGHTS)
    return path


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a.gguf", "README.md"], ()),
        (["a.gguf", "mmproj-a-f16.gguf"], ("mmproj-a-f16.gguf",)),
        (["mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-Q8_0.gguf"], ("mmproj-F16.gguf",)),
        (["mmproj-F32.gguf", "mmproj-BF16.gguf"], ("mmproj-BF16.gguf",)),
        (["mmproj-Q4_0.gguf", "mmproj-F32.gguf"], ("mmproj-F32.gguf",)),
        (["deep/mmproj-F16.gguf", "a.mmproj-q8_0.gguf"], ("a.mmproj-q8_0.gguf",)),
        (["mmproj.gguf.part", "mmproj/a.gguf"], ()),
    ],
)
def test_the_projector_of_a_repository(names: list[str], chosen: tuple[str, ...]) -> None:
    assert projector(names) == chosen == projector(reversed(names))


def test_the_one_beside_a_file_is_its_projector(tmp_path: Path) -> None:
    path = model(tmp_path)
    assert adhoc.spec(str(path)).mmproj is None
    first = made(tmp_path / "mmproj-model-f16.gguf", vision=True)
    assert adhoc.spec(str(path)).mmproj == FileSource(first)
    assert adhoc.spec(str(first)).mmproj is None
    made(tmp_path / "MMPROJ-other.gguf", vision=True)
    assert adhoc.spec(str(path)).mmproj is None, "which of the two is not said"


def test_the_settings_go_before_the_entry(tmp_path: Path) -> None:
    store, path = Store(tmp_path / "store"), model(tmp_path)
    beside, other = made(tmp_path / "mmproj.gguf", vision=True), made(tmp_path / "other.gguf", audio=True)
    spec = adhoc.spec(str(path))
    assert projector_of(spec, EngineSettings(), store) == beside
    assert projector_of(spec, EngineSettings(mmproj="none"), store) is None
    assert projector_of(spec, EngineSettings(mmproj=str(other)), store) == other
    with pytest.raises(
        ConfigError, match=r"^mmproj: there is no file .*nowhere\.gguf; name the \.gguf file of a projector, or none"
    ):
        projector_of(spec, EngineSettings(mmproj=str(tmp_path / "nowhere.gguf")), store)


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        ({"vision": True}, {"text", "image"}),
        ({"audio": True, "vision": False}, {"text", "audio"}),
        ({"audio": True, "vision": True}, {"text", "image", "audio"}),
        ({}, {"text"}),
    ],
)
def test_what_a_model_takes_with_it(tmp_path: Path, kinds: dict[str, bool], found: set[str]) -> None:
    spec = ModelSpec(
        id="x", source=FileSource(model(tmp_path)), mmproj=FileSource(made(tmp_path / "p.gguf", **kinds)), description="d"
    )
    assert modalities(spec, Store(tmp_path / "store")) == found


def test_what_a_model_takes_whose_projector_is_not_there(tmp_path: Path) -> None:
    store, source = Store(tmp_path / "store"), FileSource(model(tmp_path))
    spec = ModelSpec(id="x", source=source, description="d")
    assert modalities(spec, store) == {"text"}
    assert modalities(msgspec.structs.replace(spec, mmproj=HubSource("a/b", file="p.gguf")), store) == {"text", "image"}
    assert modalities(msgspec.structs.replace(spec, mmproj=HubSource("a/b", projector=True)), store) == {"text"}
    damaged = tmp_path / "p.gguf"
    damaged.write_bytes(b"GGUF\x03")
    assert modalities(msgspec.structs.replace(spec, mmproj=FileSource(damaged)), store) == {"text"}


def test_the_projector_of_a_repository_is_fetched_with_the_model(hub: Hub, store: Store) -> None:
    hub.repos["acme/tiny"] = Repo({"tiny-Q4_0.gguf": WEIGHTS, "mmproj-F16.gguf": b"GGUF eyes", "mmproj-F32.gguf": b"GGUF fine"})
    spec = adhoc.spec(NAME)
    assert fetch(spec, store).read_bytes() == WEIGHTS
    path = store.path(spec, "mmproj")
    assert path and (path.name, path.read_bytes()) == ("mmproj-F16.gguf", b"GGUF eyes")
    asked = len(hub.requests)
    fetch(spec, store)
    assert len(hub.requests) == asked


def test_a_repository_without_one_is_asked_once(hub: Hub, store: Store) -> None:
    hub.repos["acme/tiny"] = Repo({"tiny-Q4_0.gguf": WEIGHTS})
    spec = adhoc.spec(NAME)
    path = fetch(spec, store)
    assert store.has(spec) and store.path(spec, "mmproj") is None and store.missing(spec) == []
    asked = len(hub.requests)
    assert fetch(spec, store) == path and len(hub.requests) == asked
    assert store.digest(path) and modalities(spec, store) == {"text"}


def test_a_model_does_without_if_the_hub_is_gone(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repos["acme/tiny"] = Repo({"tiny-Q4_0.gguf": WEIGHTS})
    spec = adhoc.spec(NAME)
    path = fetch(msgspec.structs.replace(spec, mmproj=None), store)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        assert fetch(spec, store) == path
    assert "it is used without pictures and sounds" in caplog.text
    monkeypatch.undo()
    assert store.missing(spec) == ["mmproj"], "it is looked for again the next time"


def test_an_entry_says_what_a_model_takes_until_its_projector_is_there(tmp_path: Path) -> None:
    store, source = Store(tmp_path / "store"), FileSource(model(tmp_path))
    spec = ModelSpec(
        id="x", source=source, mmproj=HubSource("a/b", file="p.gguf"), modalities=("text", "audio"), description="d"
    )
    assert modalities(spec, store) == {"text", "audio"}
    assert adhoc.spec(NAME).takes == ("text",), "whether there is a projector is not known before the Hub is asked"
