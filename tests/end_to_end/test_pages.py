"""The examples of the documentation's pages, as written, with the real model: shell, Python, YAML and terminal output."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from locallab.cluster import config as configs
from locallab.models.registry import Registry
from locallab.server.dialects.assistant.templates import Templates
from tests.support.document_examples import Example
from tests.support.pages import PAGES, ROOT, blocks
from tests.support.served_process import Process, serving
from tests.support.wait import LONG_PATIENCE

NOT_RUN = {
    "pip install": "installs packages; test_install.py installs the wheel",
    "python -m pytest": "runs these tests",
    "scripts/bench --model": "needs llama.cpp's C++ server",
    "(cd scripts && python -m benchlib.random_projector": "writes 180 MB; tests/scripts/test_bench.py makes a small one",
    "scripts/bench --report": "changes the checkout; tests/scripts/test_bench.py compares the page and the figure",
    "scripts/page-pictures": "changes the checkout; tests/server/page/test_tour.py drives through the same views",
    "scripts/soak --model": "takes minutes; tests/scripts/test_soak.py runs it on scripted servers",
    "scripts/cluster-bench": "takes minutes; tests/scripts/test_cluster_bench.py runs it briefly",
    "scripts/cluster-sim --replicas": "takes minutes; tests/scripts/test_cluster_sim.py simulates few replicas",
    "scripts/cluster-sim --table": "takes ten seconds; tests/scripts/test_cluster_sim.py measures a small table",
    "(cd scripts && python -m clustersim.record": "takes minutes; tests/scripts/test_cluster_sim.py records a tiny model",
    "scripts/gpu-check": "needs a GPU and ten minutes; tests/scripts/test_gpu_check.py runs it on a CPU",
    "scripts/cli-reference --write": "changes the checkout; tests/scripts/test_cli_reference.py compares the page",
    "locallab pull": "needs the Hub",
    "locallab serve --model qwen2.5-coder:7b": "needs the Hub",
    "locallab serve --model hf:": "needs the Hub",
    "locallab serve --model smollm2:135m --lora": "needs adapters; tests/inprocess/test_adapters.py runs such a server",
    "locallab serve --host 0.0.0.0 --tls-cert": "needs a certificate; tests/cli/commands/test_serve_addresses.py makes one",
    "locallab serve --uds": "has no port; tests/cli/commands/test_serve_addresses.py runs it",
    "locallab serve --tunnel cloudflared": "needs Cloudflare; tests/tunnel/test_cloudflared.py has a stand-in",
    "NGROK_AUTHTOKEN=": "needs an ngrok account",
    "PICTURE=": "needs a model that sees; tests/server/dialects/test_media.py sends such requests",
    "locallab doctor --clients": "tests/replay/test_live.py runs it",
    "from langchain_openai": "needs a library of its own environment; tests/clients/test_python_clients.py runs it",
    "name: LocalLab": "needs an editor: Continue",
    '{\n  "language_models"': "needs an editor: Zed",
    'model = "qwen2.5-coder': "needs an agent: Codex",
    "export ANTHROPIC_BASE_URL": "needs an agent: Claude Code",
    "export OPENAI_API_BASE": "needs an agent: aider",
    "docker run": "needs Docker and Open WebUI",
    "docker build": "needs Docker; tests/scripts/deploy/test_dockerfiles.py does without it what this does",
    "cd scripts/deploy\n": "needs Docker; tests/scripts/deploy/test_compose.py reads the files",
    "kubectl": "needs a cluster; tests/scripts/deploy/test_kubernetes.py reads the files",
    "python3 -m venv /opt/locallab": "changes the machine; tests/scripts/deploy/test_systemd_unit.py runs what the unit runs",
}
"""Beginnings of examples that cannot run here, with the reason."""

NO_EXAMPLE = ("text",)
"""Languages of blocks that show something and ask for nothing."""

STAND_IN = "models:\n" + "".join(
    f'- {{id: "{name}", source: {{kind: file, path: "MODEL"}}, context: 2048, description: the embedded model}}\n'
    for name in ("smollm2:135m", "qwen2.5-coder:7b-q4_k_m")
)
"""The models that the examples name, all from one file."""

EVERY = [(page, block) for page in PAGES for block in blocks(page) if block.language not in NO_EXAMPLE]
RUN = [(page, block) for page, block in EVERY if not block.text.startswith(tuple(NOT_RUN))]


def in_language(*languages: str, serves: bool = False) -> Any:
    found = [(page, block) for page, block in RUN if block.language in languages]
    found = [(page, block) for page, block in found if ("locallab serve" in block.text) == serves]
    ids = [f"{page}: {block.heading}: {block.text.splitlines()[0][:40]}" for page, block in found]
    return pytest.mark.parametrize("block", [block for _, block in found], ids=ids)


@pytest.fixture(scope="module")
def registry(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pages") / "models.yaml"
    file.write_text(STAND_IN.replace("MODEL", str(model_path)))
    return file


@pytest.fixture(scope="module")
def server(registry: Path) -> Iterator[Process]:
    with serving("smollm2:135m", "--registry", str(registry)) as process:
        yield process


@pytest.fixture
def environ(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell in which `locallab` and `python` are those under test, ports are free ones, and curl fails where HTTP does."""
    for name, command in {"locallab": "-m locallab", "python": "", "python3": ""}.items():
        (tmp_path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".curlrc").write_text("fail\n")
    shutil.copy(registry, Path(os.environ["LOCALLAB_CONFIG"]))
    values = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CURL_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for name, value in {**values, "LOCALLAB_PORT": "0", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)


def as_written(block: Example, server: Process) -> str:
    """The example with nothing changed but where the server is."""
    return re.sub(r"(?:127\.0\.0\.1|localhost):8000", server.url.removeprefix("http://"), block.text)


def output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG_PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def started(script: str) -> Iterator[Iterator[str]]:
    """The lines that a shell script prints; it is ended with all that it has started."""
    process = subprocess.Popen(
        ["bash", "-euc", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert process.stdout
        yield iter(process.stdout)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=LONG_PATIENCE)


def test_every_exception_is_needed() -> None:
    texts = [block.text for _, block in EVERY]
    assert [start for start in NOT_RUN if not any(text.startswith(start) for text in texts)] == []


def test_every_example_is_run() -> None:
    assert {block.language for _, block in RUN} == {"sh", "python", "yaml", "console"}
    assert {block.language for _, block in EVERY} == {"sh", "bash", "python", "yaml", "console", "json", "toml"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@in_language("sh", "bash")
def test_shell(server: Process, environ: None, monkeypatch: pytest.MonkeyPatch, block: Example) -> None:
    monkeypatch.setenv("LOCALLAB_URL", server.url)
    assert output("bash", "-euo", "pipefail", "-c", as_written(block, server)).strip()


@in_language("sh", "bash", serves=True)
def test_shell_that_serves(environ: None, block: Example) -> None:
    with started(block.text) as lines:
        assert any("listens on http://" in line for line in lines)


@in_language("python")
def test_python(server: Process, environ: None, block: Example) -> None:
    assert output("python", "-c", as_written(block, server)).strip()


@in_language("console", serves=True)
def test_terminal_output(environ: None, block: Example) -> None:
    """Figures and the device depend on the machine."""

    def general(line: str) -> str:
        return re.sub(r"\d+", "0", re.sub(r"^(  device +).*", r"\1", line.rstrip()))

    command, *expected = block.text.splitlines()
    with started(command.removeprefix("$ ")) as lines:
        assert [general(next(lines)) for _ in expected] == [general(line) for line in expected]


@in_language("yaml")
def test_yaml(environ: None, tmp_path: Path, block: Example) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(block.text)
    if "server" in yaml.safe_load(block.text):
        assert configs.for_serve(configs.read(str(file)))["http_options"] == {"host": "127.0.0.1", "port": 8000}
    elif "models" in yaml.safe_load(block.text):
        listed = output("bash", "-c", f"cp {file} $LOCALLAB_CONFIG/models.yaml; locallab list")
        for entry in yaml.safe_load(block.text)["models"]:
            assert entry.get("description", "") in Registry.discover(str(file)).get(entry["id"]).description
            assert entry["id"] in listed
    else:
        assert Templates.load(file).templates["refactor"].startswith("Refactor this code")


@pytest.mark.parametrize("block", [block for _, block in EVERY if block.language in ("json", "yaml")], ids=str)
def test_files_of_other_programs_can_be_read(block: Example) -> None:
    assert isinstance(json.loads(block.text) if block.language == "json" else yaml.safe_load(block.text), dict)
