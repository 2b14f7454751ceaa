from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from locallab.models import FileSource, HubSource, ModelSpec, Store, fetch, other_stores
from locallab.models.spec import ModelId
from tests.support.hub_server import Hub
from tests.support.tiny_weights import WEIGHTS, Calls
from tests.support.weight_caches import hub_cache, ollama, sha256

OTHER = b"GGUF" + WEIGHTS[::-1]


@pytest.fixture
def huggingface(tmp_path: Path) -> Path:
    return tmp_path / "huggingface"


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    return tmp_path / "ollama"


def test_a_cached_file_is_used_instead_of_fetched(
    hub: Hub, hub_spec: ModelSpec, store: Store, huggingface: Path, progress: Calls
) -> None:
    snapshot = hub_cache(huggingface, "acme/tiny", {"tiny.gguf": WEIGHTS})
    assert fetch(hub_spec, store, progress) == snapshot / "tiny.gguf" == store.path(hub_spec)
    assert hub.requests == []
    assert progress.seen == [(len(WEIGHTS), len(WEIGHTS))]


def test_a_cached_file_that_was_deleted_is_fetched(hub: Hub, hub_spec: ModelSpec, store: Store, huggingface: Path) -> None:
    snapshot = hub_cache(huggingface, "acme/tiny", {"tiny.gguf": WEIGHTS})
    fetch(hub_spec, store)
    (snapshot / "tiny.gguf").unlink()
    assert fetch(hub_spec, store) == store.folder(hub_spec) / "tiny.gguf"
    assert len(hub.gets) == 1


def test_a_damaged_cached_file_is_not_used(
    hub: Hub, hub_spec: ModelSpec, store: Store, huggingface: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = hub_cache(huggingface, "acme/tiny", {"tiny.gguf": WEIGHTS})
    blob = (snapshot / "tiny.gguf").resolve()
    blob.write_bytes(WEIGHTS[:-1])
    assert fetch(hub_spec, store) == store.folder(hub_spec) / "tiny.gguf"
    assert f"{blob} is damaged: it is not used" in caplog.messages


COMMITS = ("a" * 40, "b" * 40)


@pytest.mark.parametrize(
    ("source", "commit"),
    [
        (HubSource("acme/tiny", file="tiny.gguf"), "a"),
        (HubSource("acme/tiny", file="tiny.gguf", revision="v2"), "b"),
        (HubSource("acme/tiny", file="tiny.gguf", revision="b" * 40), "b"),
        (HubSource("acme/tiny", file="tiny.gguf", revision="v3"), None),
        (HubSource("acme/other", file="tiny.gguf"), None),
        (HubSource("acme/tiny", file="other.gguf"), None),
        (HubSource("acme/tiny"), "a"),
        (HubSource("acme/tiny", quantization="Q8_0"), None),
    ],
)
def test_found_in_the_right_revision(huggingface: Path, source: HubSource, commit: str | None) -> None:
    hub_cache(huggingface, "acme/tiny", {"tiny.gguf": WEIGHTS}, "a" * 40)
    hub_cache(huggingface, "acme/tiny", {"tiny.gguf": OTHER}, "b" * 40, "v2")
    (*found,) = other_stores.found(source)
    assert [path.parent.name[0] for path in found] == ([commit] if commit else [])


def test_a_split_model_is_found_whole_or_not_at_all(huggingface: Path) -> None:
    names = [f"q/tiny-Q8_0-0000{index}-of-00002.gguf" for index in (1, 2)]
    snapshot = hub_cache(huggingface, "acme/tiny", {name: b"GGUF" + name.encode() for name in names})
    for source in (HubSource("acme/tiny", file=names[1]), HubSource("acme/tiny", quantization="q8_0")):
        assert other_stores.found(source) == tuple(snapshot / name for name in names)
    (snapshot / names[0]).unlink()
    for source in (HubSource("acme/tiny", file=names[1]), HubSource("acme/tiny", quantization="q8_0")):
        assert other_stores.found(source) == ()


def test_a_file_that_is_no_blob_cannot_be_checked_and_is_not_used(huggingface: Path) -> None:
    snapshot = huggingface / "hub" / "models--acme--tiny" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tiny.gguf").write_bytes(WEIGHTS)
    assert other_stores.found(HubSource("acme/tiny", file="tiny.gguf", revision="a" * 40)) == ()


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"])
def test_the_cache_is_where_its_owner_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    snapshot = hub_cache(tmp_path / "elsewhere", "acme/tiny", {"tiny.gguf": WEIGHTS})
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere" if variable == "HF_HOME" else tmp_path / "elsewhere" / "hub"))
    assert other_stores.found(HubSource("acme/tiny", file="tiny.gguf")) == (snapshot / "tiny.gguf",)


def test_ollamas_blob_of_the_same_digest_is_used_instead_of_fetched(
    hub: Hub, hub_spec: ModelSpec, store: Store, blobs: Path
) -> None:
    blob = ollama(blobs, "registry.ollama.ai/library/tiny/1m", WEIGHTS)
    assert fetch(hub_spec, store) == blob
    assert hub.gets == []
    assert store.size(hub_spec) == len(WEIGHTS)


def test_a_damaged_blob_of_ollama_is_not_used(hub: Hub, hub_spec: ModelSpec, store: Store, blobs: Path) -> None:
    ollama(blobs, "registry.ollama.ai/library/tiny/1m", WEIGHTS).write_bytes(OTHER[: len(WEIGHTS)])
    assert fetch(hub_spec, store) == store.folder(hub_spec) / "tiny.gguf"


def test_scan(huggingface: Path, blobs: Path) -> None:
    files = {"tiny-Q8_0.gguf": WEIGHTS, "tiny-Q4_K_M.gguf": OTHER, "mmproj-F16.gguf": b"GGUF", "README.md": b"x"}
    snapshot = hub_cache(huggingface, "acme/tiny-GGUF", files)
    hub_cache(huggingface, "acme/none", {"config.json": b"{}"})
    hub_cache(huggingface, "acme/fake", {"fake.gguf": b"not GGUF"})
    model = ollama(blobs, "registry.ollama.ai/library/llama3.2/3b", WEIGHTS, projector=b"GGUF eyes")
    ollama(blobs, "hf.co/acme/tiny-GGUF/Q4_0", OTHER)
    ollama(blobs, "registry.ollama.ai/somebody/tiny/latest", OTHER, manifests="manifests-v2")
    (blobs / "manifests" / "registry.ollama.ai" / "library" / "llama3.2" / "broken").write_text("{")
    found = {(each.keeper, each.name): each for each in other_stores.scan()}
    assert list(found) == [
        ("huggingface", "acme/tiny-GGUF:Q4_K_M"),
        ("huggingface", "acme/tiny-GGUF:Q8_0"),
        ("ollama", "hf.co/acme/tiny-GGUF:Q4_0"),
        ("ollama", "llama3.2:3b"),
        ("ollama", "somebody/tiny:latest"),
    ]
    cached, seeing = found["huggingface", "acme/tiny-GGUF:Q8_0"], found["ollama", "llama3.2:3b"]
    assert (cached.path, cached.size) == (snapshot / "tiny-Q8_0.gguf", len(WEIGHTS))
    assert (seeing.path, seeing.mmproj) == (model, blobs / "blobs" / f"sha256-{sha256(b'GGUF eyes')}")


def test_scan_tells_models_of_the_same_quantization_apart_and_shows_the_newest(huggingface: Path) -> None:
    old = hub_cache(huggingface, "acme/tiny", {"a-Q8_0.gguf": WEIGHTS, "b-Q8_0.gguf": OTHER}, "a" * 40)
    new = hub_cache(huggingface, "acme/tiny", {"a-Q8_0.gguf": b"GGUF new", "b-Q8_0.gguf": b"GGUF new too"}, "b" * 40)
    for index, link in enumerate([*old.iterdir(), *new.iterdir()]):
        os.utime(link.resolve(), (index, index))
    assert [(each.name, each.path) for each in other_stores.scan()] == [
        ("acme/tiny:a-Q8_0", new / "a-Q8_0.gguf"),
        ("acme/tiny:b-Q8_0", new / "b-Q8_0.gguf"),
    ]


def test_nothing_is_found_where_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setattr(other_stores, "SERVICE", tmp_path / "none")
    assert other_stores.scan() == []
    ollama(tmp_path / ".ollama" / "models", "registry.ollama.ai/library/tiny/1m", WEIGHTS)
    assert [each.name for each in other_stores.scan()] == ["tiny:1m"]


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("llama3.2:3b", "llama3.2:3b"),
        ("hf.co/acme/tiny-GGUF:Q4_0", "hf.co-acme-tiny-GGUF:Q4_0"),
        ("acme/tiny:Q4_K_M", "acme-tiny:Q4_K_M"),
        ("acme/tiny:a b", "acme-tiny:a-b"),
        ("_", "model"),
    ],
)
def test_the_entry_of_an_importable(tmp_path: Path, name: str, model_id: str) -> None:
    file = tmp_path / "blob"
    file.write_bytes(WEIGHTS)
    each = other_stores.Importable(name, "ollama", (file,), mmproj=file)
    assert msgspec.convert(each.model_id, ModelId) == model_id
    spec = each.spec("mine")
    assert (spec.id, spec.source, spec.mmproj, spec.size) == ("mine", FileSource(file), FileSource(file), len(WEIGHTS))
    assert spec.description == f"{name}, from Ollama"


def test_a_cached_file_of_another_digest_is_not_used(huggingface: Path, hub_spec: ModelSpec, hub: Hub, store: Store) -> None:
    hub_cache(huggingface, "acme/tiny", {"tiny.gguf": WEIGHTS[::-1]})
    named = HubSource("acme/tiny", file="tiny.gguf", sha256=hashlib.sha256(WEIGHTS).hexdigest())
    spec = msgspec.structs.replace(hub_spec, source=named)
    assert fetch(spec, store) == store.folder(spec) / "tiny.gguf"
    assert store.files(spec)[0].read_bytes() == WEIGHTS
