"""Fetching without loading, and models that go when nobody uses them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from locallab.errors import EngineClosed, SourceError, UnknownModel
from tests.support.fake_pool import making, soon
from tests.support.tiny_weights import Calls
from tests.support.wait import PATIENCE, until


def test_pull_loads_nothing(tmp_path: Path) -> None:
    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        progress(1, 2)
        return Path(spec.id)

    with making(tmp_path, fetch=fetch) as made:
        calls = Calls()
        assert made.pool.pull("FIRST", calls).result(PATIENCE) == Path("tiny:1b")
        assert calls.seen == [(1, 2)] and made.engines == [] and made.pool.status("first") == "unloaded"
        with pytest.raises(UnknownModel):
            made.pool.pull("tinny", calls)


def test_pull_that_fails_leaves_no_mark(tmp_path: Path) -> None:
    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        raise SourceError("gone")

    with making(tmp_path, fetch=fetch) as made:
        with pytest.raises(SourceError, match="gone"):
            made.pool.pull("tiny:1b", Calls()).result(PATIENCE)
        assert made.pool.status("tiny:1b") == "unloaded" and made.pool.error("tiny:1b") is None


def test_closing_ends_a_pull(tmp_path: Path) -> None:
    begun = threading.Event()

    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        while True:
            begun.set()
            progress(1, None)

    with making(tmp_path, fetch=fetch) as made:
        pull = made.pool.pull("tiny:1b", Calls())
        assert begun.wait(PATIENCE)
        made.pool.close()
        with pytest.raises(EngineClosed):
            pull.result(PATIENCE)
        with pytest.raises(EngineClosed):
            made.pool.pull("tiny:1b", Calls())


def test_a_model_that_nobody_uses_goes_and_comes_back(tmp_path: Path) -> None:
    with making(tmp_path) as made:
        made.pool.load_now("tiny:1b")
        made.pool.release_idle("first")
        until(lambda: made.pool.status("tiny:1b") == "unloaded")
        assert made.pool.default is not None and asyncio.run(made.answer(None)) == "tiny:1b"
        made.pool.release_idle("other:2b")  # which is not loaded
        with pytest.raises(UnknownModel):
            made.pool.release_idle("tinny")


def test_a_model_in_use_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with made.asking("tiny:1b") as lease:
            await lease.wait()
            made.pool.release_idle("tiny:1b")
        assert made.pool.status("tiny:1b") == "ready"
        made.pool.release_idle("tiny:1b")
        await soon(lambda: made.pool.status("tiny:1b") == "unloaded")

    with making(tmp_path) as made:
        made.pool.load_now("tiny:1b")
        asyncio.run(scenario())


def test_how_long_a_model_stays(tmp_path: Path) -> None:
    with making(tmp_path, keep_alive=1000) as made:
        assert made.pool.seconds_left("tiny:1b") is None
        made.pool.load_now("tiny:1b")
        left = made.pool.seconds_left("tiny:1b")
        assert left is not None and 0 < left <= 1000 and made.pool.keep_alive == 1000
    with making(tmp_path) as made:
        made.pool.load_now("tiny:1b")
        assert made.pool.seconds_left("tiny:1b") is None
