from __future__ import annotations

import contextlib
import datetime
import threading
from pathlib import Path
from typing import Any

import ollama

from tests.support.dialect_requests import TEMPLATE
from tests.support.http_server import Serve, Served
from tests.support.ollama_api import USER, chat, lines
from tests.support.wait import until

# ---- models


def test_loading_and_unloading(serve: Serve) -> None:
    with serve(load=None, engine={"template": TEMPLATE}) as served, contextlib.closing(ollama.Client(served.url)) as client:
        loaded = client.generate("other:2b")
        assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "") and served.engine.submitted == []
        assert [model.model for model in client.ps().models] == ["other:2b"]
        assert client.chat("tiny:1b", []).done_reason == "load"
        assert served.pool.status("tiny:1b") == "ready"
        assert client.chat("tiny:1b", [], keep_alive=0).done_reason == "unload"
        assert client.generate("any", keep_alive=0).done_reason == "unload"
        assert served.pool.status("tiny:1b") == "unloaded"
        assert client.chat("tiny:1b", USER, keep_alive="0s").done_reason == "stop"
        until(lambda: served.pool.status("tiny:1b") == "unloaded")
        assert served.http.post("/generate", json={"prompt": "hi"}).status_code == 200  # the next request brings it back


def test_a_model_that_others_use_is_not_unloaded(thinking: Served) -> None:
    hold = threading.Event()
    thinking.engine.script = lambda prompt, params: [b"a", hold] if params.seed == 1 else [b"b"]
    with thinking.http.stream("POST", "/api/chat", json={"messages": USER, "options": {"seed": 1}}) as response:
        body = response.iter_text()
        next(body)
        assert chat(thinking, keep_alive=0).status_code == 200
        hold.set()
        assert lines("".join(body))[-1]["done_reason"] == "stop"
    assert thinking.pool.status("tiny:1b") == "ready"


def test_models(thinking: Served, client: ollama.Client) -> None:
    listed = {model.model: model for model in client.list().models}
    assert list(listed) == ["tiny:1b", "other:2b", "broken:3b"]
    tiny = listed["tiny:1b"]
    assert tiny.size == 98_000_000 and tiny.modified_at is not None and len(tiny.digest or "") == 64
    assert tiny.details is not None and tiny.details.family == "fake" and tiny.details.format == "gguf"
    [running] = client.ps().models
    assert running.name == "tiny:1b" and running.context_length == 4096 and running.size_vram == 0
    assert running.expires_at is not None and running.expires_at.year == 9999 and running.digest == tiny.digest


def test_how_long_a_model_stays(serve: Serve) -> None:
    with serve(keep_alive=300) as served:
        [model] = served.http.get("/api/ps").json()["models"]
        left = datetime.datetime.fromisoformat(model["expires_at"].replace("Z", "+00:00")) - datetime.datetime.now(
            datetime.timezone.utc
        )
        assert 200 < left.total_seconds() <= 300
        assert "x-locallab-notes" not in chat(served, keep_alive="5m").headers


def test_show(thinking: Served, client: ollama.Client) -> None:
    shown = client.show("tiny:1b")
    assert shown.template == TEMPLATE and shown.capabilities == ["completion", "tools", "thinking"]
    info: Any = shown.modelinfo
    assert (
        info["general.architecture"] == "fake"
        and info["fake.context_length"] == 4096
        and info["general.parameter_count"] == 135
    )
    assert shown.parameters == "num_ctx 4096"
    assert thinking.http.post("/api/show", json={"name": "first:latest"}).json()["model_info"] == info
    assert client.show("llama3.2").modelinfo == info  # as the answer would come from there
    other = thinking.http.post("/api/show", json={"model": "other:2b"}).json()
    assert other["capabilities"] == ["completion"] and other["parameters"] == "num_ctx 512"


def test_facts_of_a_real_file(serve: Serve, tmp_path: Path) -> None:
    from tests.support.tiny_gguf import write

    with serve() as served:
        write(tmp_path / "other-2b.gguf", "llama")
        shown = served.http.post("/api/show", json={"model": "other:2b"}).json()
        assert shown["details"]["family"] == "llama" and shown["model_info"]["llama.block_count"] == 4
        assert shown["model_info"]["general.parameter_count"] > 10_000 and shown["model_info"]["llama.context_length"] == 512
        assert shown["details"]["parameter_size"] == str(shown["model_info"]["general.parameter_count"])
