"""What is fetched once into a cache: clients of other makers, with programs that use them, each of which prints what came of
its cases; and chat templates of released models."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from tests.support.cache import CACHE

HERE = Path(__file__).parents[1] / "clients"
OLDEST_NODE = 20
DEADLINE = 240
"""Seconds for one program."""


@dataclasses.dataclass(frozen=True)
class Told:
    """The output of one program: the result of each of its cases, or its error."""

    cases: dict[str, Any]

    def __call__(self, case: str) -> Any:
        outcome = self.cases[case]
        assert "error" not in outcome, f"{case}: {outcome['error']}"
        return outcome["result"]


def python(program: str, url: str) -> Told:
    """Run a program of python/ with the clients of its requirements.txt."""
    return _told([str(_environment() / "bin/python"), "-B", "-W", "ignore", str(HERE / "python" / program), url])


def node(program: str, url: str) -> Told:
    """Run a program of node/ with the clients of its package.json; skip the test without Node.js."""
    source = "".join((HERE / "node" / name).read_text() for name in (program, "report.mjs"))
    # Read from its input, a program finds the modules of the folder it runs in.
    return _told([_node(), "--input-type=module", "-", url], cwd=_modules(), input=source)


def _told(command: Sequence[str], **more: Any) -> Told:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, env=_environ(), **more)
    assert done.returncode == 0, done.stderr
    return Told(json.loads(done.stdout.splitlines()[-1]))


def _environ() -> dict[str, str]:
    """Return an environment without keys and proxies of the user."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}


@functools.cache
def _environment() -> Path:
    def install(folder: Path) -> None:
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "-r", str(HERE / "python/requirements.txt"))

    return _installed("python", [HERE / "python/requirements.txt"], f"{sys.version_info[:2]}", install)


@functools.cache
def _modules() -> Path:
    files = [HERE / "node/package.json", HERE / "node/package-lock.json"]

    def install(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, folder)
        _run(str(shutil.which("npm")), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder))

    return _installed("node", files, "", install)


@functools.cache
def templates() -> Path:
    """Return the folder of chat templates of the installed version's source distribution."""
    requirement = f"llama-cpp-python=={importlib.metadata.version('llama-cpp-python')}"

    def install(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        source = ["--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder)]
        _run(sys.executable, "-m", "pip", "download", "--quiet", *source, requirement)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as files:
            for file in files:
                if file.name.endswith(".jinja") and (text := files.extractfile(file)) is not None:
                    (folder / Path(file.name).name).write_bytes(text.read())
        archive.unlink()

    return _installed("templates", [], requirement, install)


@functools.cache
def _node() -> str:
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        pytest.skip("the clients for Node.js need node and npm on the PATH")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"the clients for Node.js need version {OLDEST_NODE}, this is {version}")
    return found


def _installed(name: str, files: Sequence[Path], more: str, install: Callable[[Path], None]) -> Path:
    """Return the folder for the contents of `files`; `install` fills it, once for all runs of the tests."""
    digest = hashlib.sha256(b"\0".join([*(file.read_bytes() for file in files), more.encode()])).hexdigest()[:12]
    folder = CACHE / f"clients-{name}-{digest}"
    with _locked(CACHE / f"clients-{name}.lock"):
        whole = folder / "whole"
        if not whole.exists():
            install(folder)
            whole.touch()
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


class Place(pydantic.BaseModel):
    """A place."""

    city: Literal["Oslo", "Rome"]
    coastal: bool
    people: int = pydantic.Field(ge=0, le=99)


CITIES = ("Oslo", "Rome")


def is_place(found: dict[str, Any]) -> bool:
    return found["city"] in CITIES and type(found["coastal"]) is bool and 0 <= found["people"] <= 99
