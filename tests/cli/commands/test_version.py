from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version

import pytest
from click.testing import CliRunner

from locallab import __version__, cli
from locallab.cli.commands import version as command


def test_versions() -> None:
    lines = dict(line.split(maxsplit=1) for line in CliRunner().invoke(cli.main, ["version"]).stdout.splitlines())
    assert lines["locallab"] == __version__
    assert lines["llama-cpp-python"] == version("llama-cpp-python")
    assert lines["python"] == platform.python_version()
    assert "CPU : " in lines["llama.cpp"]


def test_as_json() -> None:
    report = json.loads(CliRunner().invoke(cli.main, ["version", "--json"]).stdout)
    assert (report["locallab"], report["python"]) == (__version__, platform.python_version())
    assert {"llama_cpp_python", "cuda", "gpu_offload", "system_info"} <= set(report["llama_cpp"])


def test_a_llama_cpp_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "locallab.engine", None)
    done = CliRunner().invoke(cli.main, ["version"])
    assert done.exit_code == 0
    assert "llama-cpp-python  cannot be loaded: " in done.stdout


@pytest.mark.parametrize(
    ("cuda", "offload", "shown"),
    [(True, True, "yes, by CUDA"), (False, True, "yes"), (False, False, "no: built for the CPU only")],
)
def test_what_it_says_of_gpus(cuda: bool, offload: bool, shown: str) -> None:
    assert command._gpu({"cuda": cuda, "gpu_offload": offload}) == shown
