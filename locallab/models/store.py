"""Where weights lie: <home>/models/<id>/, for mmproj and draft one folder below.

A part of a model is there once its record is: the record is written last, and says what was fetched from where and how large
each file is. A file that is shorter than its record says is not there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import msgspec

from locallab.models.spec import FileSource, HubSource, ModelSpec, Part, PypiSource, shards
from locallab.settings import home

RECORD = ".files.json"
LOOK = 1.0  # seconds between two looks at a lock that another holds


class Kept(msgspec.Struct, frozen=True):
    """A file of the record: its name beside the record, or its whole path if it lies elsewhere."""

    path: str
    size: int
    sha256: str | None = None


class Record(msgspec.Struct, frozen=True):
    """What a part of a model was fetched from, at which commit of a repository, and its files in order."""

    source: HubSource | PypiSource
    files: tuple[Kept, ...]
    commit: str | None = None


class Store:
    """The models on this machine. `root` None is the models folder of `settings.home()`; it is made when first needed."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = home() / "models" if root is None else root

    def path(self, spec: ModelSpec, part: Part = "model") -> Path | None:
        """The file to open for this part if all its files are there and complete, else None. Changes nothing."""
        return next(iter(self.files(spec, part)), None)

    def has(self, spec: ModelSpec) -> bool:
        """Whether every part of the model is there and complete. Changes nothing."""
        return all(self.files(spec, part) for part in spec.parts)

    def size(self, spec: ModelSpec) -> int | None:
        """Bytes of the model's own files, None if they are not there. Changes nothing."""
        files = self.files(spec)
        return sum(path.stat().st_size for path in files) if files else None

    def files(self, spec: ModelSpec, part: Part = "model") -> tuple[Path, ...]:
        """All files of a part, in order, if they are there and complete, else none. Changes nothing."""
        source = spec.parts.get(part)
        if isinstance(source, FileSource):
            beside = tuple(source.path.with_name(name) for name in shards(source.path.name))
            return beside if all(_size(path) for path in beside) else ()
        record = self.record(spec, part)
        if record is None:
            return self._unrecorded(spec, part)
        paths = tuple(self.folder(spec, part) / kept.path for kept in record.files)
        whole = all(_size(path) == kept.size for path, kept in zip(paths, record.files, strict=True))
        return paths if whole and record.source == source else ()

    def record(self, spec: ModelSpec, part: Part = "model") -> Record | None:
        """What was fetched for this part, None if nothing was or the record cannot be read. Changes nothing."""
        return self.record_in(self.folder(spec, part))

    def record_in(self, folder: Path) -> Record | None:
        """As `record`, for a folder of which nobody knows the model. Changes nothing."""
        try:
            return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            return None

    def folder(self, spec: ModelSpec, part: Part = "model") -> Path:
        """Where this part's files lie once they are there, unless its source is a file. Changes nothing."""
        folder = self.root / _folder(spec)
        return folder if part == "model" else folder / part

    def adopt(self, spec: ModelSpec, part: Part, files: Sequence[tuple[Path, Kept]], commit: str | None = None) -> Path:
        """Moves complete files to their places, each to the name its record gives, and returns the first.

        Nobody sees a part of a file, or some files of a part. What was there before is replaced.
        """
        folder = self.folder(spec, part)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).unlink(missing_ok=True)
        for file, kept in files:
            self._move(file, folder / kept.path, spec)
        keeping = {RECORD, *(kept.path for _, kept in files)}
        for old in folder.iterdir():
            if old.name not in keeping and old.is_file():
                old.unlink()
        return self.refer(spec, part, [kept for _, kept in files], commit)

    def refer(self, spec: ModelSpec, part: Part, files: Sequence[Kept], commit: str | None = None) -> Path:
        """Records the files of a part that lie in their places already, or elsewhere on this machine. Returns the first."""
        source = spec.parts[part]
        assert not isinstance(source, FileSource), "a file source has no record"
        folder = self.folder(spec, part)
        folder.mkdir(parents=True, exist_ok=True)
        with self.scratch(spec) as scratch:
            record = scratch / RECORD
            record.write_bytes(msgspec.json.format(msgspec.json.encode(Record(source, tuple(files), commit))))
            _sync(record)
            os.replace(record, folder / RECORD)
        return folder / files[0].path

    def remove(self, spec: ModelSpec) -> int:
        """Removes what the store holds of the model, half-fetched files too; files elsewhere stay. Returns the bytes freed."""
        freed = self.held(spec)
        for folder in (self.folder(spec), self._partials(spec)):
            shutil.rmtree(folder, ignore_errors=True)
        return freed

    def held(self, spec: ModelSpec) -> int:
        """Bytes that `remove` would free. Changes nothing."""
        folders = (self.folder(spec), self._partials(spec))
        return sum(_size(path) for folder in folders for path in folder.rglob("*") if not path.is_symlink())

    @contextlib.contextmanager
    def lock(self, spec: ModelSpec, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the model against other processes and threads that fetch it; while it waits for them it calls `waiting`."""
        # Imports slowly; unlike a plain FileLock it also works on file systems without flock, as a mounted cloud drive.
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(WeakFileLock(locks / f"{_folder(spec)}.lock", timeout=LOOK))
                    break
                except TimeoutError:
                    waiting()
            yield

    @contextlib.contextmanager
    def scratch(self, spec: ModelSpec) -> Iterator[Path]:
        """A new folder for half-made files, on the store's file system; it is gone afterwards."""
        parts = self.root / ".parts"
        parts.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parts, prefix=f"{_folder(spec)}-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def sweep(self, spec: ModelSpec) -> None:
        """Removes what a killed fetch of this model left in scratch folders. Only for the holder of its lock."""
        for left in (self.root / ".parts").glob(f"{_folder(spec)}-????????"):
            shutil.rmtree(left, ignore_errors=True)

    def partial(self, spec: ModelSpec, part: Part, names: Sequence[str]) -> list[Path]:
        """The places of half-fetched files, which outlive the process; others of this part are removed.

        Only for the holder of the model's lock, as is `drop_partial`.
        """
        folder = self._partials(spec) / part
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if old.name not in names:
                old.unlink()
        return [folder / name for name in names]

    def drop_partial(self, spec: ModelSpec, part: Part) -> None:
        """Removes the half-fetched files of a part."""
        shutil.rmtree(self._partials(spec) / part, ignore_errors=True)

    def partial_size(self, spec: ModelSpec) -> int:
        """Bytes of half-fetched files of this model. Changes nothing."""
        return sum(_size(path) for path in self._partials(spec).rglob("*"))

    def _partials(self, spec: ModelSpec) -> Path:
        return self.root / ".partial" / _folder(spec)

    def _unrecorded(self, spec: ModelSpec, part: Part) -> tuple[Path, ...]:
        """The one file of a model put there without a record, if it is exactly as long as the registry says."""
        source = spec.parts.get(part)
        name = getattr(source, "file", None)
        if part != "model" or not name or len(shards(name)) > 1:
            return ()
        path = self.folder(spec) / PurePosixPath(name).name
        return (path,) if spec.size is not None and _size(path) == spec.size else ()

    def _move(self, file: Path, place: Path, spec: ModelSpec) -> None:
        _sync(file)
        try:
            os.replace(file, place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with self.scratch(spec) as scratch:
                copy = scratch / place.name
                shutil.copyfile(file, copy)
                _sync(copy)
                os.replace(copy, place)
            file.unlink()


def _folder(spec: ModelSpec) -> str:
    """The id as one readable part of a path; no two ids share one."""
    return quote(spec.id.lower(), safe=":").replace(":", "@")


def _size(path: Path) -> int:
    """Bytes of a file, 0 for what is none."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # it vanished, or may not be seen
        return 0


def _sync(path: Path) -> None:
    """Writes the file out before it is renamed, so that a power cut cannot leave a complete name on an empty file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
