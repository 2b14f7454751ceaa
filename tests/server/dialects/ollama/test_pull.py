from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ollama
import pytest

from locallab.errors import SourceError
from locallab.models import adhoc
from locallab.models.store import Kept
from tests.support.http_server import Serve

Fetch = Callable[[Any, Any, Any], Path]


def test_pull(serve: Serve) -> None:
    seen = threading.Event()

    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        progress(10, 100)
        assert seen.wait(20)
        progress(100, 100)
        return Path("there")

    with serve(pool={"fetch": fetch}, load=None) as served, contextlib.closing(ollama.Client(served.url)) as client:
        statuses = []
        for news_ in client.pull("other:2b", stream=True):
            statuses.append((news_.status, news_.completed, news_.total))
            if news_.completed:
                seen.set()
        digest = next(model.digest for model in client.list().models if model.model == "other:2b")
        status = f"pulling {str(digest)[:12]}"
        assert statuses == [("pulling manifest", None, None), (status, 10, 100), (status, 100, 100), ("success", None, None)]
        assert client.pull("other:2b").status == "success"
        assert served.pool.loaded == [] and served.pool.status("other:2b") == "unloaded"


def test_pull_that_fails(serve: Serve) -> None:
    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        raise SourceError("no such repository")

    with serve(pool={"fetch": fetch}, load=None) as served, contextlib.closing(ollama.Client(served.url)) as client:
        for stream in (False, True):
            with pytest.raises(ollama.ResponseError, match="no such repository"):
                list(client.pull("other:2b", stream=stream))


def test_a_client_that_leaves_ends_its_pull(serve: Serve) -> None:
    ended = threading.Event()

    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        try:
            while True:
                progress(1, None)
        finally:
            ended.set()

    with serve(pool={"fetch": fetch}, load=None) as served:
        with served.http.stream("POST", "/api/pull", json={"model": "other:2b"}) as response:
            lines = response.iter_lines()  # which closes the connection once it is dropped itself
            assert "pulling" in next(lines)
            assert not ended.is_set()
        assert ended.wait(20)


def test_any_model_of_the_hub_is_pulled_and_then_registered(serve: Serve) -> None:
    fetched: list[str] = []

    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        fetched.append(spec.id)
        if "gone" in spec.id:
            raise SourceError("no such repository")
        return Path("there")

    with serve(pool={"fetch": fetch}, load=None) as served, contextlib.closing(ollama.Client(served.url)) as client:
        with pytest.raises(ollama.ResponseError, match="no such repository"):
            client.pull("hf:acme/gone")
        assert [each.id for each in served.pool.registry] == ["tiny:1b", "other:2b", "broken:3b"], "a failure leaves no entry"
        for name in ("hf.co/acme/new-GGUF:Q8_0", "hf:acme/new-GGUF:Q8_0"):
            assert client.pull(name).status == "success"
            assert served.pool.registry.get(name).id == "acme--new-GGUF:Q8_0"
        assert [each.id for each in served.pool.registry][3:] == ["acme--new-GGUF:Q8_0"]
        for name in ("hf:nothing", "/etc/passwd", "./tiny.gguf", "acme/new.gguf"):
            with pytest.raises(ollama.ResponseError, match="not found"):
                client.pull(name)
    assert fetched == ["acme--gone", "acme--new-GGUF:Q8_0", "acme--new-GGUF:Q8_0"]


def test_a_model_is_deleted(serve: Serve) -> None:
    spec = adhoc.spec("hf:acme/own:Q8_0")
    with serve() as served, contextlib.closing(ollama.Client(served.url)) as client:
        served.pool.registry.resolve("hf:acme/own:Q8_0")
        folder = served.pool.store.folder(spec)
        folder.mkdir(parents=True)
        (folder / "own.gguf").write_bytes(b"GGUF" * 100)
        served.pool.store.refer(spec, "model", [Kept("own.gguf", 400)])
        assert client.delete(spec.id).status == "success"
        assert not served.pool.store.has(spec) and spec.id in [each.id for each in served.pool.registry]
        for name, status, reason in (
            (spec.id, 404, "not on disk"),
            ("tinny", 404, "not found; did you mean tiny:1b"),
            ("tiny:1b", 409, "delete it yourself"),
        ):
            with pytest.raises(ollama.ResponseError, match=reason) as refused:
                client.delete(name)
            assert refused.value.status_code == status
        assert served.pool.status("tiny:1b") == "ready"
