from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from locallab.models import Store, adhoc
from tests.support.terminal import ROOT, terminal

HUB = Path(__file__).parents[2] / "support" / "hub_server.py"
WEIGHTS = b"GGUF" + bytes(range(256)) * 64
NAME = "hf:acme/tiny:Q4_0"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A Hub on a loopback address."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("hub_server", HUB)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with module.serve(module.Hub({"acme/tiny": module.Repo({"tiny-Q4_0.gguf": WEIGHTS})})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def pull(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locallab", "pull", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_model_of_the_hub_is_fetched_once(hub) -> None:  # type: ignore[no-untyped-def]
    first, again = pull(NAME), pull(NAME)
    path = Store().path(adhoc.spec(NAME))
    assert path and hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(WEIGHTS).digest()
    assert (first.returncode, first.stdout) == (0, f"acme--tiny:Q4_0 is on disk: 16.4 kB at {path}\n")
    assert "fetching acme--tiny:Q4_0: 16.4 kB of 16.4 kB" in first.stderr
    assert (again.returncode, again.stdout) == (0, f"acme--tiny:Q4_0 was already on disk: 16.4 kB at {path}\n")
    assert again.stderr == "" and len(hub.gets) == 1


def test_a_bar_on_a_terminal(hub) -> None:  # type: ignore[no-untyped-def]
    with terminal("pull", NAME, columns=120) as shown:
        shown.expect("16.4/16.4 kB")
        shown.expect("is on disk")
        assert shown.end() == 0


def test_ctrl_c_ends_with_130_and_the_next_one_goes_on(hub) -> None:  # type: ignore[no-untyped-def]
    import threading

    hub.hold = threading.Event()
    with terminal("pull", NAME) as shown:
        assert hub.half.wait(60)
        shown.type("\x03")
        hub.hold.set()
        shown.expect("locallab: interrupted")
        assert shown.end() == 130
    assert "Traceback" not in shown.text
    assert pull(NAME).returncode == 0


def test_what_cannot_be_fetched_is_one_line(hub) -> None:  # type: ignore[no-untyped-def]
    done = pull("hf:acme/nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("locallab: acme--nothing: ")
    assert "Traceback" not in done.stderr
    assert pull("bogus").returncode == 2
