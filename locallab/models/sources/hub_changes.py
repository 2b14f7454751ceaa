"""What has changed on the Hugging Face Hub since an entry of the registry was written: repositories, revisions and files that
have moved or are gone, other contents under the same name. Fetches no file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from locallab.errors import SourceError
from locallab.models import hub_status, quants
from locallab.models.sources.download import http_error, patiently
from locallab.models.sources.hub import PATIENCE, TOKEN
from locallab.models.spec import HubSource, ModelSpec, Part, shards
from locallab.units import decimal_bytes

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

WORKERS = 8
"""Most requests to the Hub at once."""

TOLERANCE = 0.01
"""Share by which a size may differ: the registry's may be a rounded figure."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A source that does not stand any more, with what has become of it in a line."""

    id: str
    part: Part
    problem: str


def changes(specs: Iterable[ModelSpec]) -> list[Change]:
    """Ask the Hub for the sources of these models and return those that do not stand, in the order of the models. Variants are
    left out, whose files are their base's. Blocks.

    Raises SourceError if the Hub cannot be asked.
    """
    if problem := hub_status.hub_problem():
        raise _unreachable(problem)
    asked = [
        (spec, part, source)
        for spec in specs
        for part, source in spec.parts.items()
        if isinstance(source, HubSource) and spec.base is None
    ]
    places = list(dict.fromkeys((source.repo, source.revision) for _, _, source in asked))
    pool = ThreadPoolExecutor(WORKERS)
    try:
        answers = dict(zip(places, pool.map(_ask, places), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    return [
        Change(spec.id, part, problem)
        for spec, part, source in asked
        for problem in _problems(source, answers[source.repo, source.revision], spec.size if part == "model" else None)
    ]


def _ask(place: tuple[str, str | None]) -> ModelInfo | str:
    """Return what a repository has at a revision, or why the Hub does not say. Raises SourceError if nothing can be asked."""
    from huggingface_hub import HfApi, errors

    repo, revision = place
    api = HfApi(endpoint=hub_status.endpoint())
    request = functools.partial(api.model_info, repo, revision=revision, files_metadata=True, timeout=PATIENCE)
    try:
        info: ModelInfo = patiently(repo, request, lambda: None)
    except errors.RepositoryNotFoundError:
        return f"{repo} is gone or private; if it is private, {TOKEN}"
    except errors.RevisionNotFoundError:
        return f"{repo} has no revision {revision} any more"
    except errors.HfHubHTTPError as error:
        return f"{repo} cannot be checked: HTTP {error.response.status_code}"
    except (http_error(), OSError, ImportError, ValueError) as error:
        raise _unreachable(str(error).strip().partition("\n")[0] or type(error).__name__) from error
    return info


def _problems(source: HubSource, answer: ModelInfo | str, size: int | None) -> Iterator[str]:
    """Yield what differs from the registry, which says `size` of all the source's files."""
    if isinstance(answer, str):
        yield answer
        return
    if answer.id != source.repo:
        yield f"{source.repo} has moved to {answer.id}"
    there = {sibling.rfilename: sibling for sibling in answer.siblings or ()}
    at = f" at {source.revision}" if source.revision else ""
    try:
        names = shards(source.file) if source.file else quants.choose(there, source.quantization)
    except quants.NoChoice as error:
        yield f"{answer.id} {error}{at}"
        return
    if missing := [name for name in names if name not in there]:
        digests = {sibling.lfs.sha256: name for name, sibling in there.items() if sibling.lfs}
        now = digests.get(source.sha256 or "") or _namesake(missing[0], there)
        yield f"{answer.id} has no file {missing[0]}{at}" + (f"; it is {now} now" if now else "")
        return
    first, sizes = there[names[0]], [there[name].size for name in names]
    if source.sha256 and first.lfs and first.lfs.sha256 != source.sha256:
        yield f"{names[0]} of {answer.id}{at} has other contents: sha256 {first.lfs.sha256}, in the registry {source.sha256}"
    total = sum(each or 0 for each in sizes)
    if size and all(sizes) and abs(total - size) > TOLERANCE * size:
        yield f"{names[0]} of {answer.id}{at} has {decimal_bytes(total)}, in the registry {decimal_bytes(size)}"


def _namesake(name: str, there: Iterable[str]) -> str | None:
    """Return the file that has the same name in another folder or in other letters, None if there is none or several."""
    wanted = PurePosixPath(name).name.lower()
    found = [each for each in there if PurePosixPath(each).name.lower() == wanted]
    return found[0] if len(found) == 1 else None


def _unreachable(reason: str) -> SourceError:
    remedy = "unset it" if hub_status.offline() else "check the network, its proxy and HF_ENDPOINT"
    return SourceError(f"the Hub at {hub_status.endpoint()} cannot be asked: {reason}; {remedy}")
