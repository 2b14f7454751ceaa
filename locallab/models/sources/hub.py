"""Files of a repository on the Hugging Face Hub, or on a mirror named by HF_ENDPOINT.

huggingface_hub resolves the files and authenticates. Its own download keeps nothing of a killed process and checks no digest;
`download` does both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from locallab.errors import SourceError
from locallab.models import other_stores, quants
from locallab.models.hub_status import endpoint
from locallab.models.sources.download import Remote, WrongContent, download, http_error, patiently
from locallab.models.sources.part_fetch import PartFetch
from locallab.models.spec import HubSource, ModelSpec, Part, shards
from locallab.models.store import Kept, Record, Store
from locallab.units import decimal_bytes

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds to wait for the Hub to list a repository."""

TOKEN = "set HF_TOKEN to a token that may read it"


def part_fetch(spec: ModelSpec, part: Part, source: HubSource, store: Store, alive: Callable[[], None]) -> PartFetch:
    """Query the Hub for the files to fetch, unless another program's cache has them. Raises SourceError.

    `alive` is called while waiting for the Hub; an exception of it ends the wait.
    """
    if (cached := other_stores.found(source)) and (not source.sha256 or _sha256(cached[0]) == source.sha256):
        return _reusing(spec, part, store, cached)
    fetching = _Fetching(spec, part, source, store)
    fetching.plan(alive)
    if not fetching.remotes:
        return PartFetch(0, 0, fetching.record_none)
    only = fetching.remotes[0]
    if len(fetching.remotes) == 1 and (blob := other_stores.blob(only.sha256, only.size)):
        return _reusing(spec, part, store, (blob,))
    return PartFetch(fetching.size, fetching.missing(), fetching.run)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _reusing(spec: ModelSpec, part: Part, store: Store, files: tuple[Path, ...]) -> PartFetch:
    """Return a fetch that only records the files, which stay in place."""

    def run(report: Callable[[int], None]) -> None:
        log.info("%s: using %s, which is on this machine already", spec.id, files[0])
        store.refer(spec, part, [Kept(str(file), file.stat().st_size) for file in files])

    return PartFetch(sum(file.stat().st_size for file in files), 0, run)


class _Fetching:
    """The files of one part on the Hub, and their transfer."""

    def __init__(self, spec: ModelSpec, part: Part, source: HubSource, store: Store) -> None:
        self._spec = spec
        self._part = part
        self._source = source
        self._store = store
        self._page = f"{endpoint()}/{source.repo}"
        self._revision = source.revision
        self._commit: str | None = None
        self.remotes: list[Remote] = []
        self._places: list[Path] = []

    def plan(self, alive: Callable[[], None]) -> None:
        """Query the digest and the size of each file, all at one commit."""
        from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

        source = self._source
        pinned = self._store.pinned(self._spec, self._part)
        self._revision = pinned.commit if pinned and pinned.commit else source.revision
        with self._explained():
            if source.file:
                files = shards(source.file)
            else:
                api = HfApi(endpoint=endpoint())
                list_files = functools.partial(api.model_info, source.repo, revision=self._revision, timeout=PATIENCE)
                info = patiently(source.repo, list_files, alive)
                self._commit = info.sha
                names = [sibling.rfilename for sibling in info.siblings or ()]
                files = quants.projector(names) if source.projector else quants.choose(names, source.quantization)
            for file in files:
                revision = self._commit or self._revision
                url = hf_hub_url(source.repo, file, revision=revision, endpoint=endpoint())
                metadata = patiently(file, functools.partial(get_hf_file_metadata, url, endpoint=endpoint()), alive)
                if not metadata.commit_hash or not metadata.etag:
                    raise ValueError("the server there is not a Hub")
                if not self._commit:
                    self._commit = metadata.commit_hash
                    url = hf_hub_url(source.repo, file, revision=self._commit, endpoint=endpoint())
                self.remotes.append(self._held(Remote(file, url, metadata.size, metadata.etag), pinned))
        self._places = self._store.partial(self._spec, self._part, [quote(each.etag, safe="") for each in self.remotes])

    def _held(self, remote: Remote, pinned: Record | None) -> Remote:
        """Return the remote file, to be checked against the digest that the registry or the first download has of it.

        Raises SourceError if the Hub announces another one.
        """
        name = PurePosixPath(remote.file).name
        expected = next((kept.sha256 for kept in pinned.files if kept.path == name), None) if pinned else None
        by = f"the first download, which {self._store.pin_of(self._spec, self._part)} records: delete that folder to take it"
        if self._source.sha256 and not self.remotes:
            expected, by = self._source.sha256, "the registry: correct source.sha256, or name its commit in source.revision"
        if expected and remote.sha256 not in (None, expected):
            raise SourceError(
                f"{self._spec.id}: {remote.file} of {self._page} has the sha256 {remote.sha256} and not {expected} as in {by}"
            )
        return dataclasses.replace(remote, etag=expected) if expected else remote

    @property
    def size(self) -> int | None:
        sizes = [remote.size for remote in self.remotes if remote.size is not None]
        return sum(sizes) if len(sizes) == len(self.remotes) else None

    def missing(self) -> int:
        """Return the bytes still to be fetched, as far as the Hub announces sizes."""
        return max(0, (self.size or 0) - sum(place.stat().st_size for place in self._places if place.is_file()))

    def record_none(self, report: Callable[[int], None]) -> None:
        """Record that the repository has no such part. Raises OSError."""
        self._store.refer(self._spec, self._part, (), self._commit)

    def run(self, report: Callable[[int], None]) -> None:
        """Download the files and move them into the store. Raises SourceError, OSError."""
        done, kept = 0, []
        for remote, place in zip(self.remotes, self._places, strict=True):
            try:
                with self._explained():
                    download(remote, place, lambda here, done=done: report(done + here))  # type: ignore[misc]
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                missing = self.missing()
                self._store.drop_partial(self._spec, self._part)  # frees the disk for the rest of the machine
                raise SourceError(
                    f"{self._spec.id}: the disk of {self._store.root} became full with {decimal_bytes(missing)} missing;"
                    f" {decimal_bytes(self.size or missing)} are needed: make room, or set LOCALLAB_HOME to a larger disk"
                ) from error
            size = place.stat().st_size
            if not size:
                raise SourceError(f"{self._spec.id}: the source has an empty file, {remote.file} of {self._page}")
            done += size
            kept.append((place, Kept(PurePosixPath(remote.file).name, size, remote.sha256)))
        self._store.adopt(self._spec, self._part, kept, self._commit)
        self._store.pin(self._spec, self._part)
        self._store.drop_partial(self._spec, self._part)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of the Hub into SourceErrors; errors of the disk pass through."""
        try:
            yield
        except (http_error(), OSError, ImportError, ValueError, quants.NoChoice, WrongContent) as error:  # ImportError: SOCKS
            if isinstance(error, OSError) and error.errno:
                raise
            raise SourceError(f"{self._spec.id}: {_reason(error, self._source, self._page, self._revision)}") from error


def _reason(error: Exception, source: HubSource, page: str, revision: str | None) -> str:
    """Describe an error: what failed, where, and what to do about it."""
    from huggingface_hub import errors

    what = source.file or "the model"
    match error:
        case quants.NoChoice():
            return f"{page} {error}"
        case WrongContent():
            return f"the download from {page} is corrupt and was discarded: {error}; try again, or check HF_ENDPOINT"
        case errors.GatedRepoError():
            return f"{page} is gated: accept its terms on that page with your account, then {TOKEN}"
        case errors.RepositoryNotFoundError():
            return f"{page} does not exist or is private: correct source.repo, or {TOKEN}"
        case errors.RevisionNotFoundError():
            if revision != source.revision:
                return (
                    f"{page} has no commit {revision} any more, which the first download got: name another in source.revision"
                )
            return f"{page} has no revision {source.revision!r}: correct source.revision"
        case errors.EntryNotFoundError():
            return f"{page} has no file {what!r}: correct source.file; {page}/tree/main lists what there is"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"{page} refuses access to {what} (HTTP {error.response.status_code}): {TOKEN}"
        case errors.OfflineModeIsEnabled():
            return f"{what} of {page} is not on this machine, and HF_HUB_OFFLINE forbids downloading it: unset it"
    reason = str(error).strip() or type(error).__name__
    return (
        f"{what} of {page} cannot be fetched: {reason.splitlines()[0]};"
        " check the network, its proxy and HF_ENDPOINT, or use a source of kind 'file' for the model"
    )
