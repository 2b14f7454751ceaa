from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ollama
import pytest

from locallab.errors import SourceError
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
