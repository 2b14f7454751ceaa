"""The store of model files: <home>/models/<id>/, with subfolders for mmproj and draft.

A part of a model is stored once its record is: the record is written last, with the source, the commit and the size of each
file. A file of another size counts as missing.
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

from locallab import private_files
from locallab.errors import NotOnDisk, NotRemovable
from locallab.models.spec import FileSource, HubSource, ModelSpec, Part, PypiSource, shards
from locallab.settings import home

RECORD = ".files.json"
LOOK = 1.0
"""Seconds between two attempts to take a lock."""


class Kept(msgspec.Struct, frozen=True):
    """A file of a record. `path` is its name beside the record, or its absolute path if it is elsewhere."""

    path: str
    size: int
    sha256: str | None = None


class Record(msgspec.Struct, frozen=True):
    """The source of a part of a model, the commit of its repository, and its files in order."""

    source: HubSource | PypiSource
    files: tuple[Kept, ...]
    commit: str | None = None


class Store:
    """The models on this machine. `root` defaults to the models folder of `settings.home()`; it is created on first use."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = home() / "models" if root is None else root

    def path(self, spec: ModelSpec, part: Part = "model") -> Path | None:
        """Return the file to open for this part, None unless all its files are complete. Changes nothing."""
        return next(iter(self.files(spec, part)), None)

    def has(self, spec: ModelSpec) -> bool:
        """Return whether all parts that the model needs are complete. Changes nothing."""
        return all(self.files(spec, part) for part in spec.parts if not spec.optional(part))

    def missing(self, spec: ModelSpec) -> list[Part]:
        """Return the parts to be fetched: without optional ones that their source is known not to have. Changes nothing."""
        return [part for part in spec.parts if not self.files(spec, part) and not self._lacks(spec, part)]

    def _lacks(self, spec: ModelSpec, part: Part) -> bool:
        record = self.record(spec, part) if spec.optional(part) else None
        return record is not None and not record.files and record.source == spec.parts[part]

    def size(self, spec: ModelSpec) -> int | None:
        """Return the bytes of the model part's files, None unless they are complete. Changes nothing."""
        files = self.files(spec)
        return sum(path.stat().st_size for path in files) if files else None

    def files(self, spec: ModelSpec, part: Part = "model") -> tuple[Path, ...]:
        """Return the files of a part in order, () unless all are complete. Changes nothing."""
        source = spec.parts.get(part)
        if isinstance(source, FileSource):
            beside = tuple(source.path.with_name(name) for name in shards(source.path.name))
            return beside if all(_size(path) for path in beside) else ()
        record = self.record(spec, part)
        if record is None:
            # A single file put there without a record counts if it has exactly the registry's size.
            name = getattr(source, "file", None)
            if part != "model" or not name or len(shards(name)) > 1:
                return ()
            path = self.folder(spec) / PurePosixPath(name).name
            return (path,) if spec.size is not None and _size(path) == spec.size else ()
        paths = tuple(self.folder(spec, part) / kept.path for kept in record.files)
        whole = all(_size(path) == kept.size for path, kept in zip(paths, record.files, strict=True))
        return paths if whole and record.source == source else ()

    def record(self, spec: ModelSpec, part: Part = "model") -> Record | None:
        """Return the record of this part, None if there is none or it is unreadable. Changes nothing."""
        return self.record_in(self.folder(spec, part))

    def record_in(self, folder: Path) -> Record | None:
        """Return the record in a folder whose model is unknown. Changes nothing."""
        try:
            return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            return None

    def pinned(self, spec: ModelSpec, part: Part) -> Record | None:
        """Return what the first download of the part's source got, None before it. Changes nothing."""
        found = self.record_in(self.pin_of(spec, part))
        return found if found is not None and found.source == spec.parts[part] else None

    def pin(self, spec: ModelSpec, part: Part) -> None:
        """Hold later downloads of the part's source against its present record, unless an earlier one does. It outlives
        `remove`. Raises OSError."""
        if self.pinned(spec, part) is None:
            folder = self.pin_of(spec, part)
            private_files.make_folder(folder)
            self._copy(self.folder(spec, part) / RECORD, folder / RECORD, spec)

    def pin_of(self, spec: ModelSpec, part: Part) -> Path:
        """Return the folder of the pin; without it the next download gets what its source has then. Changes nothing."""
        return self.root / ".pins" / _folder(spec) / part

    def digest(self, path: Path) -> str | None:
        """Return the SHA-256 of each file of the model that `path` begins, joined; None if they were never checked."""
        record = self.record_in(path.parent)
        known = record is not None and record.files and path.name == record.files[0].path
        digests = [kept.sha256 for kept in record.files] if record and known else []
        return "-".join(filter(None, digests)) if digests and all(digests) else None

    def folder(self, spec: ModelSpec, part: Part = "model") -> Path:
        """Return the folder for this part's files, which is unused if its source is a file. Changes nothing."""
        folder = self.root / _folder(spec)
        return folder if part == "model" else folder / part

    def adopt(self, spec: ModelSpec, part: Part, files: Sequence[tuple[Path, Kept]], commit: str | None = None) -> Path:
        """Move complete files into the folder of the part, under their names in `Kept`, and return the first one's path.

        Readers never see an incomplete file or an incomplete part. Previous files are replaced. Raises OSError.
        """
        folder = self.folder(spec, part)
        private_files.make_folder(folder)
        (folder / RECORD).unlink(missing_ok=True)
        for file, kept in files:
            place = folder / kept.path
            _sync(file)
            try:
                os.replace(file, place)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy(file, place, spec)
                file.unlink()
        keeping = {RECORD, *(kept.path for _, kept in files)}
        for old in folder.iterdir():
            if old.name not in keeping and old.is_file():
                old.unlink()
        return self.refer(spec, part, [kept for _, kept in files], commit)

    def _copy(self, file: Path, place: Path, spec: ModelSpec) -> None:
        """Copy a file, which appears when it is complete. Raises OSError."""
        with self.scratch(spec) as scratch:
            copy = scratch / place.name
            shutil.copyfile(file, copy)
            _sync(copy)
            os.replace(copy, place)

    def refer(self, spec: ModelSpec, part: Part, files: Sequence[Kept], commit: str | None = None) -> Path:
        """Record files that are in the part's folder already or elsewhere on this machine; return the first one's path, the
        folder's where an optional part has none."""
        source = spec.parts[part]
        assert not isinstance(source, FileSource), "a file source has no record"
        folder = self.folder(spec, part)
        private_files.make_folder(folder)
        with self.scratch(spec) as scratch:
            record = scratch / RECORD
            record.write_bytes(msgspec.json.format(msgspec.json.encode(Record(source, tuple(files), commit))))
            _sync(record)
            os.replace(record, folder / RECORD)
        return folder / files[0].path if files else folder

    def check_removal(self, spec: ModelSpec) -> None:
        """Raise NotRemovable, NotOnDisk for a model that has nothing that `remove` may remove. Changes nothing."""
        if spec.loaded_as != spec.id:
            raise NotRemovable(spec.id, f"is {spec.loaded_as} with an adapter; both are removed with {spec.loaded_as}")
        if isinstance(spec.source, FileSource):
            raise NotRemovable(spec.id, f"is the file {spec.source.path}, which LocalLab did not fetch: delete it yourself")
        if not self.held(spec):
            raise NotOnDisk(spec.id)

    def remove(self, spec: ModelSpec) -> int:
        """Remove the model's files in the store, including partial ones, but not files elsewhere. Return the bytes freed."""
        freed = self.held(spec)
        for folder in (self.folder(spec), self._partials(spec)):
            shutil.rmtree(folder, ignore_errors=True)
        return freed

    def held(self, spec: ModelSpec) -> int:
        """Return the bytes that `remove` would free. Changes nothing."""
        folders = (self.folder(spec), self._partials(spec))
        return sum(_size(path) for folder in folders for path in folder.rglob("*") if not path.is_symlink())

    @contextlib.contextmanager
    def lock(self, spec: ModelSpec, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Lock the model against fetches in other processes and threads; calls `waiting` repeatedly until the lock is free."""
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(self._locked(_folder(spec), LOOK))
                    break
                except TimeoutError:
                    waiting()
            yield

    def _locked(self, name: str, timeout: float) -> contextlib.AbstractContextManager[object]:
        """Return the lock of the model with this folder. Entering raises TimeoutError after `timeout` seconds."""
        # Slow to import. Unlike a plain FileLock it also works on file systems without flock, such as mounted cloud drives.
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        locks = self.root / ".locks"
        private_files.make_folder(locks)
        return WeakFileLock(locks / f"{name}.lock", timeout=timeout)

    @contextlib.contextmanager
    def scratch(self, spec: ModelSpec) -> Iterator[Path]:
        """Create a temporary folder on the store's file system."""
        parts = self.root / ".parts"
        private_files.make_folder(parts)
        with tempfile.TemporaryDirectory(dir=parts, prefix=f"{_folder(spec)}-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def sweep(self, held: ModelSpec | None = None) -> None:
        """Remove the scratch folders that killed fetches left. Those of a model whose lock is taken are in use, unless the
        caller has it: `held`."""
        for left in (self.root / ".parts").glob("*-????????"):
            name = left.name[:-9]
            free = contextlib.nullcontext() if held and name == _folder(held) else self._locked(name, timeout=0.01)
            with contextlib.suppress(TimeoutError, OSError), free:
                shutil.rmtree(left, ignore_errors=True)

    def partial(self, spec: ModelSpec, part: Part, names: Sequence[str]) -> list[Path]:
        """Return paths for partial files, which outlive the process, and remove this part's other partial files.

        Only for the holder of the model's lock, like `drop_partial`.
        """
        folder = self._partials(spec) / part
        private_files.make_folder(folder)
        for old in folder.iterdir():
            if old.name not in names:
                old.unlink()
        return [folder / name for name in names]

    def drop_partial(self, spec: ModelSpec, part: Part) -> None:
        """Remove the partial files of a part."""
        shutil.rmtree(self._partials(spec) / part, ignore_errors=True)

    def partial_size(self, spec: ModelSpec) -> int:
        """Return the bytes of this model's partial files. Changes nothing."""
        return sum(_size(path) for path in self._partials(spec).rglob("*"))

    def _partials(self, spec: ModelSpec) -> Path:
        return self.root / ".partial" / _folder(spec)


def _folder(spec: ModelSpec) -> str:
    """Return the id, that of a variant's base, as a readable and unique path component."""
    return quote((spec.base or spec.id).lower(), safe=":").replace(":", "@")


def _size(path: Path) -> int:
    """Return the bytes of a file, 0 if it is none."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # removed meanwhile, or not accessible
        return 0


def _sync(path: Path) -> None:
    """Flush the file to disk before it is renamed, so that a power cut cannot leave an empty file under the final name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
