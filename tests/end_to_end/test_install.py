"""The package as its users get it: built as a wheel and installed, away from the checkout."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "models.yaml", "locallab")
NEEDED_SETUPTOOLS = 77


def version() -> str:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config["metadata"]["version"]


def run(*command: str | Path, cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(folder: Path) -> Path:
    """A wheel of the sources as they are now. With no setuptools of its own that is new enough, pip fetches one."""
    sources = folder / "sources"
    sources.mkdir()
    for name in SOURCES:
        path = ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, sources / name)
    isolation = [] if setuptools_major() < NEEDED_SETUPTOOLS else ["--no-build-isolation"]
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", *isolation, "--wheel-dir", folder, sources, cwd=folder)
    return next(folder.glob("locallab_server-*.whl"))


def setuptools_major() -> int:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new virtual environment that holds the wheel, and sees this environment's libraries."""
    pytest.importorskip("pip", reason="this environment has no pip to build a wheel with")
    folder = tmp_path_factory.mktemp("install")
    wheel = build(folder)
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    libraries = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (libraries / "libraries.pth").write_text("\n".join(sorted(paths)))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--ignore-installed", wheel, cwd=folder)
    return python.parent


def test_the_command_is_there(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "locallab", "--version", cwd=tmp_path) == f"locallab {version()}\n"


def test_the_registry_comes_along(installed: Path, tmp_path: Path) -> None:
    code = "import locallab; from locallab.models import default_path; print(locallab.__file__, default_path(), sep='\\n')"
    package, registry = run(installed / "python", "-c", code, cwd=tmp_path).splitlines()
    environment = installed.parent.resolve()
    assert Path(package).resolve().is_relative_to(environment)
    assert Path(registry).resolve().is_relative_to(environment)
    assert Path(registry).read_text() == (ROOT / "models.yaml").read_text()


def test_every_file_is_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import pathlib, locallab; print(*pathlib.Path(locallab.__file__).parent.rglob('*.*'), sep='\\n')"
    package = ROOT / "locallab"
    there = {path.partition("/locallab/")[2] for path in run(installed / "python", "-c", code, cwd=tmp_path).splitlines()}
    ours = {str(path.relative_to(package)) for path in package.rglob("*.*") if path.suffix != ".pyc"}
    assert {path for path in there if not path.endswith(".pyc")} == ours


def test_a_young_interface_has_an_upper_bound() -> None:
    """Those below 1.0, and those whose inner workings this package builds on."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    inner = {"llama-cpp-python", "llguidance", "jinja2", "starlette", "sse-starlette", "uvicorn", "limits", "click"}
    for line in config["options"]["install_requires"].split():
        requirement = Requirement(line)
        young = re.search(r">=0\.", line) is not None
        bounded = any(each.operator in ("<", "==") for each in requirement.specifier)
        assert bounded or not (young or requirement.name in inner), f"{line} has no upper bound"
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name))


def test_the_changelog_is_about_this_version() -> None:
    head = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert head and head[1] == version()
