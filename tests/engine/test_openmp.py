"""Which OpenMP runtime is found, and which one then computes, in processes of their own: each loads llama.cpp once."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from locallab.engine import openmp
from locallab.errors import ConfigError
from tests.support import tiny_gguf
from tests.support.wait import LONG_PATIENCE

ROOT = Path(__file__).parents[2]

REPORT = """
import dataclasses, json, sys
from locallab.engine import openmp
print(json.dumps(dataclasses.asdict(openmp.runtime())), flush=True)
"""

COMPUTE = """
import sys
from pathlib import Path
from tests.support.live_engine import ask, running
def compute(threads=2):
    with running(Path(sys.argv[1]), threads=threads) as engine:
        return ask(engine, [3, 4, 5, 6], 4).tokens
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("openmp") / "tiny.gguf", "llama")


@pytest.fixture(scope="module")
def llvm() -> Path:
    """LLVM's runtime in the package."""
    paths = [path for path in openmp.packaged() if path.name == "libomp.so"]
    if not paths:
        pytest.skip("needs cmeel-libomp, which is one of the extra 'test'")
    return paths[0]


def run(code: str, *arguments: Path, status: int = 0, **environ: str) -> tuple[Any, str]:
    """Return what a program prints as JSON, None for nothing, and its stderr."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "KMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**own, "GOMP_SPINCOUNT": "1000", **environ},  # else GNU threads that were loaded early spin for long
        capture_output=True,
        text=True,
        timeout=LONG_PATIENCE,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout or "null"), done.stderr


def placed(*paths: Path) -> list[Path]:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return list(paths)


def test_where_a_runtime_is_looked_for(tmp_path: Path) -> None:
    lib = tmp_path / "usr/lib"
    expected = placed(
        tmp_path / "site-packages/cmeel.prefix/lib/libomp.so",
        tmp_path / "mine/libomp.so.5",
        tmp_path / "conda/lib/libomp.so",
        tmp_path / "conda/lib/libiomp5.so",
        lib / f"{platform.machine()}-linux-gnu/libomp.so.5",
        tmp_path / "usr/lib64/libomp.so",
        lib / "libomp.so",
        tmp_path / "usr/local/lib/libomp.so",
        lib / "llvm-19/lib/libomp.so.5",
        lib / "llvm-9/lib/libomp.so.5",
    )
    placed(lib / "libgomp.so.1", lib / "llvm-x/lib/libomp.so.5", lib / "libompd.so")
    search = {"LD_LIBRARY_PATH": f"{tmp_path / 'none'}::{tmp_path / 'mine'}"}
    found = openmp.found(openmp.folders(tmp_path, str(tmp_path / "conda"), search, [expected[0]]))
    assert list(found) == expected
    assert list(openmp.found(openmp.folders(tmp_path / "none", str(tmp_path / "none"), {}, []))) == []


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("site-packages/cmeel.prefix/lib/libomp.so", "21.1.8"),
        ("usr/lib/llvm-14/lib/libomp.so.5", "14"),
        ("usr/lib/libomp.so.5", "5"),
        ("usr/lib/libgomp.so.1.0.0", "1.0.0"),
        ("usr/lib/libomp.so", None),
    ],
)
def test_the_version_of_a_runtime(tmp_path: Path, path: str, version: str | None) -> None:
    (link,) = placed(tmp_path / path)
    packages = {(tmp_path / "site-packages/cmeel.prefix/lib/libomp.so").resolve(): "21.1.8"}
    assert openmp.version(link, packages) == version
    (tmp_path / "link.so").symlink_to(link)
    assert openmp.version(tmp_path / "link.so", packages) == version


@pytest.mark.parametrize(
    ("set", "spin"), [({}, "300"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)], ids=str
)
def test_what_the_user_said_about_waiting_holds(monkeypatch: pytest.MonkeyPatch, set: dict[str, str], spin: str | None) -> None:
    for name in openmp.WAITING:
        monkeypatch.setenv(name, "")  # what the test sets is undone, too
        monkeypatch.delenv(name)
    for name, value in set.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(openmp, "_why", "")
    openmp.prepare("llvm")
    assert os.environ.get("GOMP_SPINCOUNT") == spin


def test_elsewhere_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(openmp, "_why", "")
    openmp.prepare("/no/such/file")
    assert openmp._why == "only on Linux is there a choice"


def test_a_path_that_is_no_runtime(tmp_path: Path) -> None:
    (text,) = placed(tmp_path / "libomp.so")
    for path, problem in ((text, "file too short"), (tmp_path / "none", "No such file"), (_ctypes(), "GOMP_parallel")):
        with pytest.raises(ConfigError, match=rf"^LOCALLAB_OPENMP: .*{path}.*{problem}.*; expected gnu, llvm or the path"):
            openmp._named(path)


def test_one_that_cannot_be_opened_is_passed_over(tmp_path: Path) -> None:
    assert openmp._first(placed(tmp_path / "libomp.so"), "it was found") == "no LLVM runtime was found"


def _ctypes() -> Path:
    """A shared library without OpenMP."""
    import _ctypes

    return Path(_ctypes.__file__)


def test_the_runtime_that_is_reported_computes(model: Path, llvm: Path) -> None:
    """KMP_VERSION has LLVM's runtime write about itself once it is used."""
    chosen = {"gnu": ("GNU", "LOCALLAB_OPENMP is gnu"), str(llvm): ("LLVM", "LOCALLAB_OPENMP names it")}
    chosen["llvm"] = ("LLVM", "LOCALLAB_OPENMP is llvm")
    for choice, expected in chosen.items():
        found, said = run(COMPUTE + "compute()" + REPORT, model, LOCALLAB_OPENMP=choice, KMP_VERSION="1")
        assert (found["name"], found["reason"]) == expected
        assert ("LLVM OMP" in said) == (found["name"] == "LLVM")
        if found["name"] == "LLVM":
            assert (Path(found["path"]), found["version"]) == (llvm, importlib.metadata.version("cmeel-libomp"))
        else:
            assert "libgomp" in found["path"]


EARLIER = {
    "llama_cpp": ("import llama_cpp", "GNU", "llama.cpp was in the process before LocalLab"),
    "another of LLVM's": ("import ctypes; ctypes.CDLL(sys.argv[2])", "LLVM", "it was in the process before LocalLab"),
    "another of LLVM's, in use": (
        "import ctypes; ctypes.CDLL(sys.argv[2]).omp_get_max_threads()",
        "LLVM",
        "it was in the process before LocalLab",
    ),
    "GNU's for all": (
        "import ctypes; ctypes.CDLL('libgomp.so.1', mode=ctypes.RTLD_GLOBAL)",
        "GNU",
        "it was in the process before LocalLab",
    ),
    "GNU's for itself": ("import ctypes; ctypes.CDLL('libgomp.so.1')", "LLVM", "LOCALLAB_OPENMP names it"),
}


@pytest.mark.parametrize(("code", "name", "reason"), EARLIER.values(), ids=EARLIER)
def test_what_was_in_the_process_before(model: Path, llvm: Path, code: str, name: str, reason: str) -> None:
    """Two of LLVM's would end the process once both are used."""
    other = llvm.with_name("libiomp5.so")
    found, said = run(
        f"import sys; {code}\n{COMPUTE}compute(){REPORT}", model, other, LOCALLAB_OPENMP=str(llvm), KMP_VERSION="1"
    )
    assert (found["name"], found["reason"]) == (name, reason)
    assert ("LLVM OMP" in said) == (name == "LLVM")
    if "LLVM" in code:
        assert Path(found["path"]) == other


ENDS = {
    "threads beyond the cores": "print(len(compute(threads=9)))",
    "two models at once": """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool:
    one, other = pool.map(compute, (2, 3))
print(len(one + other) // 2)
""",
    "a fork that computes": """
import os
tokens = compute()
if os.fork() == 0:
    os._exit(len(compute()))
print(os.waitstatus_to_exitcode(os.wait()[1]))
""",
    "an exit while it computes": """
from tests.support.live_engine import start
model = running(Path(sys.argv[1]), threads=2, context=512)
start(model.__enter__(), [3, 4, 5], 400).begun()
print(4)
""",
}


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_it_computes_and_ends_in_silence(model: Path, llvm: Path, code: str) -> None:
    assert run(COMPUTE + code, model, LOCALLAB_OPENMP=str(llvm)) == (4, "")


def test_the_choice_is_made_before_anything_loads_llama_cpp() -> None:
    """Whichever module of the engine is imported first."""
    for module in ("locallab.engine.tokenizer", "locallab.engine.embedding.context", "locallab.inprocess"):
        found, _ = run(f"import {module}{REPORT}", LOCALLAB_OPENMP="gnu")
        assert found["reason"] == "LOCALLAB_OPENMP is gnu"


def test_a_wrong_choice_ends_the_import() -> None:
    _, said = run("import locallab.engine", status=1, LOCALLAB_OPENMP="/no/such/file")
    assert said.splitlines()[-1].startswith("locallab.errors.ConfigError: LOCALLAB_OPENMP: ")
