"""Where weights lie: <home>/models/<id>/<file>. A file that is there is complete: it arrives by an atomic rename."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from locallab.models.registry import FileSource, ModelSpec
from locallab.settings import home


class Store:
    """The models on this machine. `root` None is the models folder of `settings.home()`; it is made when first needed."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = home() / "models" if root is None else root

    def path(self, spec: ModelSpec) -> Path | None:
        """The model's file if it is there and complete, else None. Changes nothing."""
        path = self.place(spec)
        return path if path.is_file() and path.stat().st_size > 0 else None

    def has(self, spec: ModelSpec) -> bool:
        """Whether the model's file is there and complete. Changes nothing."""
        return self.path(spec) is not None

    def size(self, spec: ModelSpec) -> int | None:
        """Bytes of the model's file, None if it is not there. Changes nothing."""
        path = self.path(spec)
        return path.stat().st_size if path else None

    def place(self, spec: ModelSpec) -> Path:
        """Where the model's file lies once it is there: for a file source where the user put it. Changes nothing."""
        if isinstance(spec.source, FileSource):
            return spec.source.path
        return self.root / _folder(spec) / PurePosixPath(spec.source.file).name

    def adopt(self, file: Path, spec: ModelSpec) -> Path:
        """Moves a complete `file` to its place and returns that; nobody ever sees a part of it. Replaces an older one."""
        place = self.place(spec)
        place.parent.mkdir(parents=True, exist_ok=True)
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
        return place

    @contextmanager
    def lock(self, spec: ModelSpec) -> Iterator[None]:
        """Holds the model against other processes and threads that fetch it; waits for them."""
        # Imports slowly; unlike a plain FileLock it also works on file systems without flock, as a mounted cloud drive.
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(locks / f"{_folder(spec)}.lock"):
            yield

    @contextmanager
    def scratch(self, spec: ModelSpec) -> Iterator[Path]:
        """A new folder for half-made files, on the store's file system; it is gone afterwards."""
        parts = self.root / ".parts"
        parts.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parts, prefix=f"{_folder(spec)}-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def sweep(self, spec: ModelSpec) -> None:
        """Removes what a killed fetch of this model left. Only for the holder of its lock."""
        for left in (self.root / ".parts").glob(f"{_folder(spec)}-????????"):
            shutil.rmtree(left, ignore_errors=True)


def _folder(spec: ModelSpec) -> str:
    """The id as one readable part of a path; no two ids share one."""
    return quote(spec.id.lower(), safe=":").replace(":", "@")


def _sync(path: Path) -> None:
    """Writes the file out before it is renamed, so that a power cut cannot leave a complete name on an empty file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
