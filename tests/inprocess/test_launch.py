"""Which model a server starts with when nobody names one."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import pytest

from locallab import hardware
from locallab.inprocess import launch
from locallab.models import FileSource, ModelSpec, Registry, Store, adhoc, hub_status
from locallab.models.store import Kept
from locallab.settings import ServerSettings
from tests.support import tiny_gguf
from tests.support.cli_process import command
from tests.support.wait import LONG_PATIENCE


def registry(folder: Path) -> Registry:
    """A default and a recommended model, both on disk."""
    found = Registry()
    for name in ("default", "better"):
        path = tiny_gguf.write(folder / f"{name}.gguf", "llama")
        spec = ModelSpec(id=name, source=FileSource(path), description="made", recommended=name == "better")
        found.add("a test", spec)
    return found


def test_the_log_says_which_and_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert launch.choose(registry(tmp_path), None, [("--parallel", {"parallel": 3})]).id == "better"
    assert "using better, the best recommended model on disk that fits: " in caplog.text
    assert "3 requests at once" in caplog.text


def test_what_was_fetched_from_the_hub_by_name_is_served(tmp_path: Path) -> None:
    store, spec = Store(), adhoc.spec("hf:acme/own:Q8_0")
    store.folder(spec).mkdir(parents=True)
    (store.folder(spec) / "own.gguf").write_bytes(b"GGUF" * 100)
    store.refer(spec, "model", [Kept("own.gguf", 400)])
    with contextlib.closing(launch.open_pool(registry(tmp_path), ServerSettings(), ())) as pool:
        assert [each.id for each in pool.registry] == ["default", "better", "acme--own:Q8_0"]
        assert pool.registry.get("hf:acme/own:Q8_0").source == spec.source and pool.registry.default.id == "default"


def test_a_model_that_is_named_is_taken_and_nobody_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(hub_status, "hub_reachable")
    known = registry(tmp_path)
    assert launch.choose(known, "default", ()).id == "default"
    assert launch.choose(known, str(tmp_path / "better.gguf"), ()).source == known.get("better").source


def test_a_gpu_that_lies_idle_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(launch, "supports_gpu", lambda: False)
    monkeypatch.setattr(hardware, "cuda_hint", lambda gpu_build: asked.append(gpu_build))
    launch.warn_of_idle_gpu()
    assert (asked, caplog.records) == ([False], [])
    monkeypatch.setattr(hardware, "cuda_hint", lambda gpu_build: "50% faster: pip install")
    launch.warn_of_idle_gpu()
    assert [(each.levelname, each.message) for each in caplog.records] == [("WARNING", "50% faster: pip install")]


def test_serve_without_a_model(tmp_path: Path, model_path: Path) -> None:
    """Whatever the Hub has, and however fast this machine is."""
    own = tmp_path / "models.yaml"
    source = f"source: {{kind: file, path: '{model_path}'}}"
    own.write_text(f"models:\n- {{id: 'smollm2:135m', {source}, description: the default, context: 300}}\n")
    given = {"HF_HUB_OFFLINE": "1", "LOCALLAB_REGISTRY": str(own)}
    with command("--port", "0", "--threads", "1", **given) as process:
        try:
            assert process.stdout and process.stderr
            banner = [process.stdout.readline() for _ in range(4)]
        finally:
            process.terminate()
        _, err = process.communicate(timeout=LONG_PATIENCE)
    assert "model    smollm2:135m (llama" in banner[1]
    assert "context  300 tokens" in banner[3]
    assert "no model is named: using smollm2:135m, " in err
    assert "smollm2:135m: on the CPU, context 300, KV f16 in " in err
    assert process.returncode == 0
