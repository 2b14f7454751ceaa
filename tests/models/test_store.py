from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from locallab.errors import SourceError
from locallab.models import FileSource, ModelSpec, Part, Store, fetch
from locallab.models.sources import pypi
from locallab.models.store import RECORD, Kept
from tests.support.tiny_weights import WEIGHTS, Calls

OTHER = """
import sys, msgspec
from locallab.models import ModelSpec, Store, fetch

class Loud(Store):
    def lock(self, spec, waiting):
        print("asking for the lock", flush=True)
        return super().lock(spec, waiting)

with open(sys.argv[1], "rb") as spec:
    print(fetch(msgspec.json.decode(spec.read(), type=ModelSpec), Loud()))
"""


def files(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def half_made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(WEIGHTS)
    return path


def adopt(store: Store, file: Path, spec: ModelSpec, name: str = "tiny.gguf", part: Part = "model") -> Path:
    return store.adopt(spec, part, [(file, Kept(name, file.stat().st_size))])


def test_an_empty_store_has_nothing_and_makes_nothing(store: Store, pypi_spec: ModelSpec) -> None:
    assert (store.path(pypi_spec), store.has(pypi_spec), store.size(pypi_spec)) == (None, False, None)
    assert (store.record(pypi_spec), store.partial_size(pypi_spec), store.remove(pypi_spec)) == (None, 0, 0)
    assert not store.root.exists()


def test_a_file_is_adopted_under_its_id(store: Store, pypi_spec: ModelSpec, tmp_path: Path) -> None:
    given = half_made(tmp_path / "home" / "part")
    path = adopt(store, given, pypi_spec)
    assert path == tmp_path / "home" / "models" / "tiny@1m" / "tiny.gguf" == store.path(pypi_spec)
    assert (path.read_bytes(), store.size(pypi_spec), given.exists()) == (WEIGHTS, len(WEIGHTS), False)


def test_parts_do_not_get_into_each_others_way(store: Store, pypi_spec: ModelSpec, tmp_path: Path) -> None:
    spec = msgspec.structs.replace(pypi_spec, draft=pypi_spec.source, mmproj=pypi_spec.source)
    parts: tuple[Part, ...] = ("model", "mmproj", "draft")
    paths = [adopt(store, half_made(tmp_path / "home" / "part"), spec, part=part) for part in parts]
    assert [store.path(spec, part) for part in parts] == paths
    assert len(set(paths)) == 3
    assert store.has(spec)
    assert store.has(pypi_spec)


def test_nothing_is_there_before_all_is(store: Store, pypi_spec: ModelSpec, tmp_path: Path) -> None:
    files = [(half_made(tmp_path / "a"), Kept("a.gguf", len(WEIGHTS))), (tmp_path / "none", Kept("b.gguf", 1))]
    with pytest.raises(FileNotFoundError):
        store.adopt(pypi_spec, "model", files)
    assert (store.folder(pypi_spec) / "a.gguf").exists()
    assert store.path(pypi_spec) is None


@pytest.mark.parametrize("name", ["tiny.gguf", "other.gguf"])
def test_what_was_there_before_is_replaced(store: Store, pypi_spec: ModelSpec, tmp_path: Path, name: str) -> None:
    adopt(store, half_made(tmp_path / "a"), pypi_spec)
    (tmp_path / "b").write_bytes(b"GGUF new")
    path = adopt(store, tmp_path / "b", pypi_spec, name)
    assert (path.name, path.read_bytes()) == (name, b"GGUF new")
    assert files(store) == [f"tiny@1m/{RECORD}", f"tiny@1m/{name}"]


@pytest.mark.parametrize("size", [0, 1, len(WEIGHTS) - 1, len(WEIGHTS) + 1])
def test_a_file_of_another_length_does_not_count(store: Store, pypi_spec: ModelSpec, tmp_path: Path, size: int) -> None:
    path = adopt(store, half_made(tmp_path / "a"), pypi_spec)
    os.truncate(path, size)
    assert (store.path(pypi_spec), store.has(pypi_spec)) == (None, False)


@pytest.mark.parametrize("record", [b"", b"{}", b'{"source": {"kind": "file", "path": "x"}, "files": []}', b"\xff"])
def test_a_record_that_cannot_be_read_is_none(store: Store, pypi_spec: ModelSpec, tmp_path: Path, record: bytes) -> None:
    spec = msgspec.structs.replace(pypi_spec, size=None)
    adopt(store, half_made(tmp_path / "a"), spec)
    (store.folder(spec) / RECORD).write_bytes(record)
    assert store.path(spec) is None


def test_a_file_without_a_record_counts_if_it_is_as_long_as_the_registry_says(store: Store, pypi_spec: ModelSpec) -> None:
    path = half_made(store.folder(pypi_spec) / "tiny.gguf")
    assert store.path(pypi_spec) == path
    assert store.path(msgspec.structs.replace(pypi_spec, size=len(WEIGHTS) + 1)) is None
    assert store.path(msgspec.structs.replace(pypi_spec, size=None)) is None


def test_files_elsewhere_are_used_where_they_lie(store: Store, hub_spec: ModelSpec, tmp_path: Path) -> None:
    elsewhere = half_made(tmp_path / "elsewhere.gguf")
    assert store.refer(hub_spec, "model", [Kept(str(elsewhere), len(WEIGHTS))]) == elsewhere == store.path(hub_spec)
    assert store.remove(hub_spec) > 0
    assert elsewhere.exists()
    assert store.path(hub_spec) is None


def test_a_file_elsewhere_that_went_away_is_not_there(store: Store, hub_spec: ModelSpec, tmp_path: Path) -> None:
    elsewhere = half_made(tmp_path / "elsewhere.gguf")
    store.refer(hub_spec, "model", [Kept(str(elsewhere), len(WEIGHTS))])
    elsewhere.unlink()
    assert store.path(hub_spec) is None


def test_removing_takes_all_that_is_the_models_and_nothing_else(store: Store, pypi_spec: ModelSpec, tmp_path: Path) -> None:
    other = msgspec.structs.replace(pypi_spec, id="tiny:1m-chat")
    for spec in (pypi_spec, other):
        adopt(store, half_made(tmp_path / "a"), spec)
    (place,) = store.partial(pypi_spec, "draft", ["half"])
    place.write_bytes(bytes(100))
    assert store.partial_size(pypi_spec) == 100
    record = (store.folder(pypi_spec) / RECORD).stat().st_size
    assert store.remove(pypi_spec) == len(WEIGHTS) + 100 + record
    assert (store.has(pypi_spec), store.has(other), store.partial_size(pypi_spec)) == (False, True, 0)


def test_another_file_system_is_copied_before_the_rename(
    store: Store, pypi_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, place, replace = half_made(tmp_path / "elsewhere"), store.folder(pypi_spec) / "tiny.gguf", os.replace
    moved: list[Path] = []

    def across(source: Path, target: Path) -> None:
        if source == given:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        moved.append(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)
    assert adopt(store, given, pypi_spec) == place
    assert place.read_bytes() == WEIGHTS
    assert moved[0].is_relative_to(store.root)
    assert not given.exists()
    assert files(store) == [f"tiny@1m/{RECORD}", "tiny@1m/tiny.gguf"]


def test_a_failed_copy_leaves_nothing(
    store: Store, pypi_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def across(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(source: Path, target: Path) -> None:
        target.write_bytes(WEIGHTS[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", across)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        adopt(store, half_made(tmp_path / "elsewhere"), pypi_spec)
    assert files(store) == []


def test_a_rename_that_fails_otherwise_is_not_hidden(store: Store, pypi_spec: ModelSpec, tmp_path: Path) -> None:
    (store.folder(pypi_spec) / "tiny.gguf").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        adopt(store, half_made(tmp_path / "home" / "part"), pypi_spec)


def test_a_file_source_is_used_in_place(store: Store, tmp_path: Path, progress: Calls) -> None:
    path = half_made(tmp_path / "own.gguf")
    spec = ModelSpec(id="own", source=FileSource(path=path), size=1, context=1, description="own")
    assert fetch(spec, store, progress) == path == store.path(spec)
    assert store.size(spec) == len(WEIGHTS)
    assert not store.root.exists()


def test_all_files_of_a_split_model_must_be_there(store: Store, tmp_path: Path) -> None:
    first, second = (half_made(tmp_path / f"own-0000{index}-of-00002.gguf") for index in (1, 2))
    spec = ModelSpec(id="own", source=FileSource(path=first), description="own")
    assert fetch(spec, store) == first
    assert (store.files(spec), store.size(spec)) == ((first, second), 2 * len(WEIGHTS))
    second.unlink()
    with pytest.raises(SourceError, match=f"own: {second} does not exist; put the .gguf there or correct source.path"):
        fetch(spec, store)


def test_a_missing_draft_is_named(store: Store, tmp_path: Path) -> None:
    source, draft = FileSource(half_made(tmp_path / "own.gguf")), FileSource(tmp_path / "none.gguf")
    with pytest.raises(SourceError, match=r"none\.gguf does not exist; put the \.gguf there or correct draft\.path"):
        fetch(ModelSpec(id="own", source=source, draft=draft, description="own"), store)


@pytest.mark.parametrize(("name", "state"), [("none", "does not exist"), ("folder", "is not a file"), ("empty", "is empty")])
def test_a_file_source_without_a_file_is_named(store: Store, tmp_path: Path, name: str, state: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    spec = ModelSpec(id="own", source=FileSource(path=tmp_path / name), size=1, context=1, description="own")
    with pytest.raises(SourceError, match=f"own: {tmp_path / name} {state}"):
        fetch(spec, store)


def test_a_store_that_cannot_be_written_is_named(store: Store, pypi_spec: ModelSpec) -> None:
    store.root.parent.mkdir()
    store.root.touch()
    with pytest.raises(SourceError, match=f"tiny:1m: cannot be stored under {store.root}: .*(exists|Not a directory)"):
        fetch(pypi_spec, store)


def test_what_a_killed_fetch_left_is_swept_and_nothing_else(store: Store, pypi_spec: ModelSpec) -> None:
    half_made(store.root / ".parts" / "tiny@1m-abcdefgh" / "tiny.gguf")
    half_made(store.root / ".parts" / "tiny@1m-chat-abcdefgh" / "tiny.gguf")
    half_made(store.root / ".partial" / "tiny@hub" / "model" / "begun")
    busy = msgspec.structs.replace(pypi_spec, id="tiny:1m-chat")
    with store.lock(busy), store.lock(pypi_spec):
        store.sweep(pypi_spec)
    kept = [".partial/tiny@hub/model/begun"]
    assert [name for name in files(store) if ".lock" not in name] == [*kept, ".parts/tiny@1m-chat-abcdefgh/tiny.gguf"]
    store.sweep()
    assert [name for name in files(store) if ".lock" not in name] == kept


def test_threads_fetch_once(store: Store, pypi_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    waiting = threading.Semaphore(0)

    def slow(spec: ModelSpec, source: object, folder: Path, report: object) -> Path:
        fetched.append(spec.id)
        for _ in range(3):
            assert waiting.acquire(timeout=30)
        assert not store.has(spec)
        return half_made(folder / "tiny.gguf")

    class Watched(Store):
        def lock(self, spec: ModelSpec, waits: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
            waiting.release()
            return super().lock(spec, waits)

    monkeypatch.setattr(pypi, "_fetch", slow)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(pypi_spec, Watched()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["tiny:1m"]
    assert found == [store.path(pypi_spec)] * 3


def test_a_process_waits_for_the_one_that_fetches(
    store: Store, pypi_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process gets the file that this one adopts while it holds the lock; its own source would fail."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "spec").write_bytes(msgspec.json.encode(pypi_spec))
    with store.lock(pypi_spec):
        command = [sys.executable, "-c", OTHER, tmp_path / "spec"]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "asking for the lock\n"
        adopt(store, half_made(tmp_path / "home" / "part"), pypi_spec)
    out, _ = other.communicate(timeout=60)
    assert (out.strip(), other.returncode) == (str(store.path(pypi_spec)), 0)
