from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
from array import array
from pathlib import Path
from typing import Any

import pytest

from locallab import cache_files
from locallab.cache_files import About, Damaged, check, fingerprint
from locallab.errors import ConfigError
from locallab.settings import EngineSettings

TOKENS = memoryview(array("i", [5, 6, 7]))
STATE = memoryview(bytes(range(8)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with rows of the last two tokens and a fixed part."""
    folder = tmp_path / cache_files.folder_name(fingerprint("a"), "ann")
    cache_files.make_folder(folder, fingerprint("a"), "ann")
    path = folder / cache_files.file_name(TOKENS, 1, rows=True, fixed=True)
    cache_files.write(path, TOKENS, 1, STATE.cast("B", (2, 4)), STATE[:3])
    return path


def test_fingerprint() -> None:
    one = fingerprint("a", kv_type="f16", layers=3)
    assert one == fingerprint("a", layers=3, kv_type="f16") != fingerprint("a", kv_type="f16", layers=4)
    names = {cache_files.folder_name(*each) for each in ((one, ""), (one, "ann"), (fingerprint("b"), ""))}
    assert len(names) == 3


def test_a_file_as_it_was_written(path: Path) -> None:
    header, tokens, rows, fixed = cache_files.read(path)
    assert (header.start, header.end, header.rows, header.fixed) == (1, 3, 4, 3)
    assert (tokens, rows, fixed) == (TOKENS.tobytes(), STATE.tobytes(), STATE[:3].tobytes())
    assert cache_files.read_head(path) == (header, tokens)
    assert path.stat().st_size <= cache_files.reserved(3, 11)


def test_the_longest_header_fits() -> None:
    header = cache_files.Header("f" * 32, 2**63, 2**63, 2**63, 2**63, "f" * 64)
    assert len(cache_files.msgspec.json.encode(header)) < cache_files.LONGEST_HEADER


def forged(path: Path, **fields: Any) -> None:
    """Write a file whose digests are right and whose header has these fields."""
    tokens = TOKENS.tobytes()
    right = {"folder": path.parent.name, "start": 1, "end": 3, "rows": 4, "fixed": None, "version": 1}
    digest = hashlib.blake2b(STATE, digest_size=32).hexdigest()
    encoded = json.dumps({**right, "digest": digest, **fields}).encode()
    head = hashlib.blake2b(encoded + tokens, digest_size=32).digest()
    path.write_bytes(struct.pack("<8sI32s", b"LocalLab", len(encoded), head) + encoded + tokens + STATE)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"end": 2**40}, "another length"),
        ({"rows": 2**62}, "another length"),
        ({"fixed": 2**62, "rows": None}, "another length"),
        ({"start": 2**40, "end": 3, "rows": 0}, "another length"),
        ({"start": 5, "rows": -4}, "header is unusable"),
        ({"end": 2**70}, "another length"),
        ({"end": 3.0e300}, "header is unusable"),
        ({"end": "3"}, "header is unusable"),
        ({"version": 2}, "header is unusable"),
        ({"more": 1}, "header is unusable"),
        ({"digest": "x" * 1000}, "does not begin"),
        ({"folder": "f" * 32}, "of another place"),
        ({"start": 2, "rows": 8}, "of another place"),
        ({"digest": "0" * 64}, "another digest"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_header_that_lies_allocates_nothing(path: Path, fields: dict[str, Any], reason: str) -> None:
    path = path.with_name(cache_files.file_name(TOKENS, 1, rows=True, fixed=False))
    forged(path)
    assert cache_files.read(path)[2] == STATE.tobytes()
    forged(path, **fields)
    tracemalloc.start()
    try:
        with pytest.raises(Damaged, match=reason):
            cache_files.read(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_link_is_not_followed(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(OSError):
        cache_files.read(path)


def test_what_a_folder_is_for(path: Path) -> None:
    assert cache_files.read_about(path.parent) == About({"model": "a"}, "ann")
    (path.parent / cache_files.ABOUT).write_text("{")
    assert cache_files.read_about(path.parent) is None


def test_other_files_are_left_alone(path: Path, tmp_path: Path) -> None:
    others = [tmp_path / "notes", tmp_path / ("f" * 31), path.with_name("notes")]
    for other in others:
        other.touch()
    (tmp_path / ("e" * 32)).touch()
    assert [entry.path for entry in cache_files.entries(tmp_path)] == [path]
    cache_files.clear(tmp_path)
    assert not path.exists() and all(other.exists() for other in others)
    others[2].unlink()
    cache_files.clear(tmp_path)
    assert not path.parent.exists()


def test_files_that_vanish_while_they_are_listed_are_left_out(path: Path, tmp_path: Path) -> None:
    cache_files.write(path.with_name(cache_files.file_name(TOKENS, 0, rows=False, fixed=True)), TOKENS, 0, None, STATE)
    listing = cache_files.entries(tmp_path)
    next(listing)
    cache_files.clear(tmp_path)
    assert list(listing) == []


def test_check_makes_the_directory(tmp_path: Path) -> None:
    check(EngineSettings())
    check(EngineSettings(cache_disk=str(tmp_path / "a" / "b")))
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"), [("file", "it is no directory"), ("file/below", "Not a directory"), ("nul\0", "null byte")]
)
def test_check_names_what_is_wrong(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"^cache_disk: .* cannot be used: .*{reason}.*; name a writable directory, or auto$"):
        check(EngineSettings(cache_disk=str(tmp_path / name)))
