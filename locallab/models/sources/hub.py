"""Files of a repository on the Hugging Face Hub, or of a mirror that HF_ENDPOINT names.

huggingface_hub finds the files, checks the token and makes the requests. Its own download keeps nothing of a killed process
and checks no digest, so what comes is written down by `download`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from locallab.errors import SourceError
from locallab.models import other_stores, quants
from locallab.models.hub_status import endpoint
from locallab.models.sources.download import Remote, WrongContent, download, http_error, patiently
from locallab.models.sources.job import Job
from locallab.models.spec import HubSource, ModelSpec, Part, shards
from locallab.models.store import Kept, Store
from locallab.units import decimal_bytes

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds for the Hub to list a repository
TOKEN = "set HF_TOKEN to a token that may read it"


def job(spec: ModelSpec, part: Part, source: HubSource, store: Store, alive: Callable[[], None]) -> Job:
    """Asks the Hub which files to fetch, unless they lie in another program's cache already. Raises SourceError.

    `alive` is called while the Hub makes us wait; what it raises ends that.
    """
    if cached := other_stores.found(source):
        return _reusing(spec, part, store, cached)
    fetching = _Fetching(spec, part, source, store)
    fetching.plan(alive)
    only = fetching.remotes[0]
    if len(fetching.remotes) == 1 and (blob := other_stores.blob(only.sha256, only.size)):
        return _reusing(spec, part, store, (blob,))
    return Job(fetching.size, fetching.missing(), fetching.run)


def _reusing(spec: ModelSpec, part: Part, store: Store, files: tuple[Path, ...]) -> Job:
    """Uses files where they lie."""

    def run(report: Callable[[int], None]) -> None:
        log.info("%s: using %s, which is here already", spec.id, files[0])
        store.refer(spec, part, [Kept(str(file), file.stat().st_size) for file in files])

    return Job(sum(file.stat().st_size for file in files), 0, run)


class _Fetching:
    """The files of one part: which they are, how much of them is missing, and fetching them."""

    def __init__(self, spec: ModelSpec, part: Part, source: HubSource, store: Store) -> None:
        self._spec = spec
        self._part = part
        self._source = source
        self._store = store
        self._page = f"{endpoint()}/{source.repo}"
        self._commit: str | None = None
        self.remotes: list[Remote] = []
        self._places: list[Path] = []

    def plan(self, alive: Callable[[], None]) -> None:
        """Asks for the digest and the size of each file, all at one commit."""
        with self._explained():
            for file in self._files(alive):
                self.remotes.append(self._ask(file, alive))
        self._places = self._store.partial(self._spec, self._part, [quote(each.etag, safe="") for each in self.remotes])

    @property
    def size(self) -> int | None:
        sizes = [remote.size for remote in self.remotes if remote.size is not None]
        return sum(sizes) if len(sizes) == len(self.remotes) else None

    def missing(self) -> int:
        """Bytes that are still to come, as far as the Hub says."""
        return max(0, (self.size or 0) - sum(place.stat().st_size for place in self._places if place.is_file()))

    def run(self, report: Callable[[int], None]) -> None:
        done, kept = 0, []
        for remote, place in zip(self.remotes, self._places, strict=True):
            with self._explained(), self._roomy():
                download(remote, place, lambda here, done=done: report(done + here))  # type: ignore[misc]
            size = place.stat().st_size
            if not size:
                raise SourceError(f"{self._spec.id}: the source gave an empty file; {remote.file} of {self._page} is of no use")
            done += size
            kept.append((place, Kept(PurePosixPath(remote.file).name, size, remote.sha256)))
        self._store.adopt(self._spec, self._part, kept, self._commit)
        self._store.drop_partial(self._spec, self._part)

    def _files(self, alive: Callable[[], None]) -> tuple[str, ...]:
        if self._source.file:
            return shards(self._source.file)
        from huggingface_hub import HfApi

        api, source = HfApi(endpoint=endpoint()), self._source
        info = patiently(source.repo, lambda: api.model_info(source.repo, revision=source.revision, timeout=PATIENCE), alive)
        self._commit = info.sha
        return quants.choose([sibling.rfilename for sibling in info.siblings or ()], source.quantization)

    def _ask(self, file: str, alive: Callable[[], None]) -> Remote:
        from huggingface_hub import get_hf_file_metadata

        metadata = patiently(file, lambda: get_hf_file_metadata(self._url(file), endpoint=endpoint()), alive)
        if not metadata.commit_hash or not metadata.etag:
            raise ValueError("what answered there is not a Hub")
        self._commit = self._commit or metadata.commit_hash
        return Remote(file, self._url(file), metadata.size, metadata.etag)

    def _url(self, file: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self._source.repo, file, revision=self._commit or self._source.revision, endpoint=endpoint())

    @contextlib.contextmanager
    def _roomy(self) -> Iterator[None]:
        """On a full disk what came is thrown away, so that the rest of the machine has room again."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            missing = self.missing()
            self._store.drop_partial(self._spec, self._part)
            raise SourceError(
                f"{self._spec.id}: the disk of {self._store.root} became full when {decimal_bytes(missing)} were missing;"
                f" {decimal_bytes(self.size or missing)} are needed: make room, or set LOCALLAB_HOME to a larger disk"
            ) from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what went wrong with the Hub into a SourceError; the disk's errors pass."""
        try:
            yield
        except (http_error(), OSError, ValueError, quants.NoChoice, WrongContent) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise SourceError(f"{self._spec.id}: {_reason(error, self._source, self._page)}") from error


def _reason(error: Exception, source: HubSource, page: str) -> str:
    """What went wrong, where, and what to do about it."""
    from huggingface_hub import errors

    what = source.file or "the model"
    match error:
        case quants.NoChoice():
            return f"{page} {error}"
        case WrongContent():
            return f"what came of {page} is wrong and was thrown away: {error}; try again, or look at HF_ENDPOINT"
        case errors.GatedRepoError():
            return f"{page} is gated: accept its terms on that page with your account, then {TOKEN}"
        case errors.RepositoryNotFoundError():
            return f"{page} does not exist or is private: correct source.repo, or {TOKEN}"
        case errors.RevisionNotFoundError():
            return f"{page} has no revision {source.revision!r}: correct source.revision"
        case errors.EntryNotFoundError():
            return f"{page} has no file {what!r}: correct source.file; {page}/tree/main lists what there is"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"{page} refuses access to {what} (HTTP {error.response.status_code}): {TOKEN}"
        case errors.OfflineModeIsEnabled():
            return f"{what} of {page} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: unset it"
    reason = str(error).strip() or type(error).__name__
    return (
        f"{what} of {page} cannot be fetched: {reason.splitlines()[0]};"
        " check the network and HF_ENDPOINT, or give the model a source of kind 'file'"
    )
