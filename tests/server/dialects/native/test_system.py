"""The reports about server and machine: /system/info and /health."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import httpx
import pytest

from locallab import __version__
from locallab.engine import openmp
from locallab.engine.request import EngineStats
from locallab.models.store import Store
from locallab.pool import Pool, PoolStats
from locallab.server.app import create_app
from locallab.server.dialects.native.system import build, machine, process
from locallab.settings import ServerSettings
from locallab.supervision import BlackBox, SetAside, Supervision
from tests.support.fake_engine import TEXT, FakeEngine, registry
from tests.support.http_server import Serve, Served, running
from tests.support.tiny_server import tiny_server
from tests.support.wait import until

LENGTH = len(TEXT.encode())


def test_the_machine_and_the_build(served: Served) -> None:
    body = served.http.get("/system/info").json()
    system = body["system"]
    assert system["cpu"]["logical_cores"] >= system["cpu"]["threads"] >= 1
    assert system["memory"]["total_bytes"] > 0 and system["disk"]["total_bytes"] > 0 and isinstance(system["gpus"], list)
    assert system["platform"] and system["python"].count(".") == 2
    assert set(system["versions"]) == {"locallab", "llama-cpp-python"}
    assert body["version"] == __version__ and isinstance(body["build"]["cuda"], bool)
    assert body["process"]["pid"] == os.getpid() and body["process"]["resident_bytes"] > 1 << 20
    assert body["process"]["openmp"] == dataclasses.asdict(openmp.runtime())
    assert body["public_url"] is None and body["tunnel"] is None


def test_every_loaded_model_is_told_with_its_figures(serve: Serve) -> None:
    with serve() as served:
        served.http.post("/generate", json={"prompt": "hi"})
        body = served.http.get("/system/info").json()
        [model] = body["models"]
        assert body["model"] == model and model["name"] == "tiny:1b" and model["context"] == 512
        assert model["stats"]["completion_tokens"] == LENGTH and set(model["stats"]) == set(EngineStats.__dataclass_fields__)
        assert model["cache"]["requests"] == {"end": 0, "first time": 1, "diverged": 0, "evicted": 0, "no snapshot": 0}
        assert model["cache"]["missed_tokens"]["first time"] == 3 and not any(model["cache"]["hit_tokens"].values())
        assert set(model["memory"]) == {"ram_bytes", "vram_bytes"}
        assert (model["memory_kind"], model["kv_layout"], model["prefix_reuse"]) == ("attention", "unified", "prefix")
        assert body["loads"]["loads"] == 1 and set(body["loads"]) == set(PoolStats.__dataclass_fields__)
        served.http.post("/models/unload", json={})
        body = served.http.get("/system/info").json()
        assert (body["model"], body["models"], body["loads"]["unloads"]) == (None, [], 1)


@pytest.mark.parametrize("architecture", ["gemma3", "mamba", "lfm2"])
def test_what_a_model_keeps_of_earlier_tokens(tmp_path: Path, architecture: str) -> None:
    kind = {"gemma3": "window", "mamba": "recurrent", "lfm2": "hybrid"}[architecture]
    with tiny_server(tmp_path, architecture=architecture, cache_ram_mib=1, on_demand="swap") as tiny:
        for about in (tiny.http.get("/system/info").json()["model"], tiny.http.get("/models/current").json()):
            assert (about["memory_kind"], about["prefix_reuse"]) == (kind, "snapshots")
            assert about["kv_layout"] in ("unified", "streams")
        stats = tiny.http.get("/system/info").json()["model"]["stats"]
        assert (stats["stored_bytes"], stats["stored_limit"]) == (0, 1 << 20)
        tiny.post("/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}], max_tokens=1)
        until(lambda: tiny.http.get("/system/info").json()["model"]["stats"]["stored_bytes"] > 0)
        loaded = tiny.http.post("/models/load", json={"model_id": "embed"}).json()
        assert loaded["prefix_reuse"] == "none" and not {"memory_kind", "kv_layout"} & loaded.keys()


def test_cuda_is_told_from_what_llama_cpp_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("CPU : SSE3 = 1 | ", False), ("CUDA : ARCHS = 750 | CPU : SSE3 = 1 | ", True)):
        monkeypatch.setattr("llama_cpp.llama_print_system_info", lambda text=text: text.encode())
        assert build().cuda is expected


def test_what_is_told_is_complete() -> None:
    assert machine().cpu.model and process().threads >= 1


def test_health(served: Served) -> None:
    health = served.http.get("/health")
    assert health.json() == {"status": "healthy", "service": "locallab", "version": __version__, "model": "tiny:1b"}
    assert served.http.get("/health/ready").json() == {"status": "ready", "service": "locallab", "model": "tiny:1b"}
    assert served.http.get("/health/live").json() == {"status": "alive", "service": "locallab"}
    root = served.http.get("/", headers={"accept": "application/json"})
    assert root.json() == {"service": "locallab", "version": __version__, "model": "tiny:1b"}
    for headers in ({}, {"accept": "*/*"}):
        assert served.http.get("/", headers=headers).text == "Ollama is running"
    assert served.http.head("/").status_code == 200


def test_restarts_are_told(serve: Serve) -> None:
    aside = {"other:2b": SetAside("its load ended the server: SIGABRT", 1e9)}
    told = Supervision(BlackBox(), restarts=2, cause="SIGABRT while loading other:2b", set_aside=aside)
    with serve(pool={"supervision": told}) as served:
        health = served.http.get("/health").json()
        assert (health["model"], health["restarts"], health["last_end"]) == ("tiny:1b", 2, "SIGABRT while loading other:2b")
        assert health["set_aside"] == {"other:2b": "its load ended the server: SIGABRT"}
        assert served.http.get("/system/info").json()["restarts"] == 2
        assert "locallab_restarts_total 2.0" in served.http.get("/metrics").text
        refused = served.http.post("/v1/completions", json={"model": "other:2b", "prompt": "hi"})
        assert refused.status_code == 503 and "its load ended the server: SIGABRT" in refused.json()["error"]["message"]


def test_not_ready_says_why_and_when_to_ask_again(serve: Serve) -> None:
    with serve(load=None) as served:
        ready = served.http.get("/health/ready")
        assert ready.status_code == 503 and ready.headers["retry-after"] == "2"
        assert ready.json() == {"status": "not ready", "service": "locallab", "detail": "no model is loaded"}
        assert served.http.get("/health").json()["model"] is None
        assert served.http.get("/health/live").status_code == 200


def test_a_model_that_rests_is_ready(tmp_path: Path) -> None:
    """The next request reloads it."""
    pool = Pool(registry(tmp_path), Store(tmp_path / "store"), engine=FakeEngine, keep_alive=0)  # type: ignore[arg-type]
    pool.load_now("tiny:1b")
    with running(create_app(pool, ServerSettings(rate_limit=False))) as url, httpx.Client(base_url=url, timeout=30) as http:
        assert http.post("/generate", json={"prompt": "hi"}).status_code == 200
        until(lambda: pool.current is None)
        assert http.get("/health/ready").json() == {"status": "ready", "service": "locallab", "model": "tiny:1b"}
        assert http.get("/system/info").json()["model"] is None
        assert http.post("/generate", json={"prompt": "hi"}).status_code == 200
