"""The files of the prefix cache on disk: their format, names and folders.

Below the cache's directory, a folder holds the files of one fingerprint and one owner, which its `about.json` names. A file
holds the state of a prefix: magic number, length of the header, digest of header and tokens, header (JSON), all tokens of the
prefix (int32), then the rows of its last tokens and the fixed part, whose digest is in the header.

Other processes may add, replace and remove files at any time: a file appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
from msgspec import Meta

from locallab.errors import ConfigError
from locallab.settings import EngineSettings, cache_directory

VERSION: Literal[1] = 1
MAGIC = b"LocalLab"
ABOUT = "about.json"
LONGEST_HEADER = 1024
ABANDONED = 3600
"""Seconds after which a temporary file is one of a process that died."""

_BEGIN = struct.Struct("<8sI32s")
_FOLDER = re.compile("[0-9a-f]{32}")
_FILE = re.compile(r"(?P<parent>[0-9a-f]{32})-(?P<prefix>[0-9a-f]{32})-(?P<start>\d{1,9})-(?P<end>\d{1,9})-[rf]{1,2}\.prefix")

Natural = Annotated[int, Meta(ge=0)]
Fact = str | int | float | bool | None
Buffer = bytes | memoryview


class Damaged(ValueError):
    """A file is incomplete, altered, or another folder's."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's content: the state of the tokens from `start` to `end`. `rows` is the bytes for each of them, `fixed` those of
    the state at `end`; None stands for a part that is left out. `digest` is that of both parts."""

    folder: str
    start: Natural
    end: Natural
    rows: Natural | None
    fixed: Natural | None
    digest: str
    version: Literal[1] = VERSION

    @property
    def rows_size(self) -> int:
        return (self.end - self.start) * (self.rows or 0)

    @property
    def payload(self) -> int:
        return self.rows_size + (self.fixed or 0)


class About(msgspec.Struct, frozen=True):
    """The purpose of a folder: the facts of its fingerprint, and the owner of its prefixes."""

    facts: dict[str, Fact]
    owner: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A file as its name and its inode tell. `parent` and `prefix` are the digests of its tokens up to `start` and up to `end`,
    `used` is the time of its last use in ns since the epoch."""

    path: Path
    parent: str
    prefix: str
    start: int
    end: int
    size: int
    used: int

    @classmethod
    def named(cls, path: Path, size: int, used: int) -> Entry | None:
        """Return the entry of a path; None if its name is none of the cache's."""
        name = _FILE.fullmatch(path.name)
        return name and cls(path, name["parent"], name["prefix"], int(name["start"]), int(name["end"]), size, used)


def fingerprint(model: str, **facts: Fact) -> str:
    """Return facts as canonical text: equal facts give equal text, whatever their order.

    States are shared between equal fingerprints, so the facts are all that a state depends on. People know them by `model`.
    """
    return json.dumps({"model": model, **facts}, sort_keys=True)


def folder_name(fingerprint: str, owner: str) -> str:
    """Return the name of the folder for this fingerprint and owner."""
    return digest(json.dumps([VERSION, fingerprint, owner]).encode())


def digest(data: Buffer) -> str:
    """Return 128 bits of the data's BLAKE2b digest as hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def open_directory(directory: Path) -> None:
    """Make the directory, for its user only, unless it exists. Raises OSError when no files can be made there."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass


def check(settings: EngineSettings) -> None:
    """Raise ConfigError unless the directory of the settings, if any, exists, or can be made, and is writable."""
    if settings.cache_disk is None:
        return
    directory = cache_directory(settings.cache_disk)
    try:
        open_directory(directory)
    except (OSError, ValueError) as error:
        reason = "it is no directory" if isinstance(error, FileExistsError) else getattr(error, "strerror", error)
        raise ConfigError(f"cache_disk: {directory} cannot be used: {reason}; name a writable directory, or auto") from None


def make_folder(folder: Path, fingerprint: str, owner: str) -> None:
    """Make a folder and its `about.json`, unless they exist. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / ABOUT).exists():
        about = msgspec.json.encode(About(json.loads(fingerprint), owner))
        _replace(folder / ABOUT, [about])


def file_name(tokens: memoryview, start: int, rows: bool, fixed: bool) -> str:
    """Return the name of the file for this part of a prefix; `tokens` are int32."""
    kind = "r" * rows + "f" * fixed
    return f"{digest(tokens[:start])}-{digest(tokens)}-{start}-{len(tokens)}-{kind}.prefix"


def reserved(n_tokens: int, payload: int) -> int:
    """Return the most bytes that a file with so many tokens and bytes of state takes."""
    return _BEGIN.size + LONGEST_HEADER + 4 * n_tokens + payload


def write(path: Path, tokens: memoryview, start: int, rows: memoryview | None, fixed: memoryview | None) -> int:
    """Write a file, which replaces one of its name, and return its size. Its name is given when all is on disk. Raises OSError.

    `path` is one of `file_name`, `tokens` are int32, `rows` are bytes in two dimensions, `fixed` in one.
    """
    assert rows is None or len(rows) == len(tokens) - start, "rows of other tokens"
    parts: list[Buffer] = [part.cast("B") for part in (rows, fixed) if part is not None and part.nbytes]
    row = rows.shape[1] if rows is not None and rows.shape else None
    header = Header(path.parent.name, start, len(tokens), row, None if fixed is None else fixed.nbytes, _digest(parts).hex())
    encoded = msgspec.json.encode(header)
    head: list[Buffer] = [encoded, tokens.cast("B")]
    return _replace(path, [_BEGIN.pack(MAGIC, len(encoded), _digest(head)), *head, *parts])


def read_head(path: Path) -> tuple[Header, bytes]:
    """Return the header and the tokens of a file, as int32. Raises OSError, and Damaged for an unusable file."""
    with _open(path) as file:
        return _head(file, path)


def read(path: Path) -> tuple[Header, bytes, bytes | None, bytes | None]:
    """Return header, tokens, rows and fixed part of a file. Raises OSError, and Damaged for an unusable file."""
    with _open(path) as file:
        header, tokens = _head(file, path)
        rows, fixed = file.read(header.rows_size), file.read(header.fixed or 0)
    if _digest([rows, fixed]).hex() != header.digest:
        raise Damaged(f"{path}: the state has another digest than its header says")
    return header, tokens, None if header.rows is None else rows, None if header.fixed is None else fixed


def entries(directory: Path) -> Iterator[Entry]:
    """Yield the files in all folders of a cache, in no order. What vanishes meanwhile is left out."""
    for folder in folders(directory):
        for found in _scan(folder):
            try:
                stat = found.stat(follow_symlinks=False)
            except OSError:
                continue
            if entry := Entry.named(Path(found.path), stat.st_size, stat.st_mtime_ns):
                yield entry


def folders(directory: Path) -> list[Path]:
    """Return the folders of a cache, by name."""
    return sorted(Path(found.path) for found in _scan(directory) if _FOLDER.fullmatch(found.name))


def read_about(folder: Path) -> About | None:
    """Return what a folder is for; None if that is not known."""
    try:
        return msgspec.json.decode((folder / ABOUT).read_bytes(), type=About)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def owners(directory: Path, fingerprint: str) -> dict[Path, str]:
    """Return the folders of a fingerprint in a cache, with their owners."""
    found = {directory / folder_name(fingerprint, ""): ""}
    for folder in folders(directory):
        about = read_about(folder)
        if about is not None and folder.name == folder_name(fingerprint, about.owner):
            found[folder] = about.owner
    return found


def by_use(found: Iterable[Entry]) -> list[Entry]:
    """Return entries least recently used first. To use a prefix is to use all that it continues."""
    used: dict[tuple[Path, str], int] = {}
    ages: list[tuple[int, Entry]] = []
    for entry in sorted(found, key=lambda entry: (-entry.end, -entry.start)):
        age = max(entry.used, used.get((entry.path.parent, entry.prefix), 0))
        continued = entry.path.parent, entry.parent
        used[continued] = max(age, used.get(continued, 0))
        ages.append((age, entry))
    return [entry for _, entry in sorted(ages, key=lambda aged: aged[0])]


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that died."""
    for found in _scan(folder):
        if found.name.endswith(".part"):
            with contextlib.suppress(OSError):
                if found.stat(follow_symlinks=False).st_mtime < time.time() - ABANDONED:
                    os.unlink(found.path)


def clear(directory: Path) -> None:
    """Remove all files and folders of a cache, and nothing else in its directory. Raises OSError."""
    for folder in folders(directory):
        for found in _scan(folder):
            if _FILE.fullmatch(found.name) or found.name.endswith(".part") or found.name == ABOUT:
                Path(found.path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another's file is there, or a server has written meanwhile
            folder.rmdir()


def _head(file: BinaryIO, path: Path) -> tuple[Header, bytes]:
    begin = file.read(_BEGIN.size)
    if len(begin) < _BEGIN.size:
        raise Damaged(f"{path}: the file is cut off")
    magic, length, expected = _BEGIN.unpack(begin)
    if magic != MAGIC or length > LONGEST_HEADER:
        raise Damaged(f"{path}: the file does not begin as one of the cache")
    encoded = file.read(length)
    try:
        header = msgspec.json.decode(encoded, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"{path}: the header is unusable: {error}") from None
    size = _BEGIN.size + length + 4 * header.end + header.payload
    if header.start > header.end or size != os.fstat(file.fileno()).st_size:
        raise Damaged(f"{path}: the file has another length than its header says")
    tokens = file.read(4 * header.end)
    if _digest([encoded, tokens]) != expected:
        raise Damaged(f"{path}: the header or the tokens are altered")
    name = file_name(memoryview(tokens).cast("i"), header.start, header.rows is not None, header.fixed is not None)
    if (header.folder, name) != (path.parent.name, path.name):
        raise Damaged(f"{path}: the file is of another place")
    return header, tokens


def _open(path: Path) -> BinaryIO:
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")


def _digest(parts: Iterable[Buffer]) -> bytes:
    total = hashlib.blake2b(digest_size=32)
    for part in parts:
        total.update(part)
    return total.digest()


def _replace(path: Path, parts: Iterable[Buffer]) -> int:
    """Write a file, for its user only, under a temporary name, and give it its own; return its size."""
    handle, name = tempfile.mkstemp(".part", dir=path.parent)  # has the mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            size = sum(file.write(part) for part in parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    return size


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:  # no folder, a file of this name, or removed meanwhile
        return []
