"""Models whose load has ended an earlier server, and what the pool notes for the case that this one ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from locallab.errors import EngineClosed, ModelLoadError, ModelSetAside
from locallab.pool.memory import Memory, MemoryUse
from locallab.supervision import BlackBox, SetAside, Supervision
from tests.support.fake_pool import making
from tests.support.wait import until

REASON = "its load ended the server: SIGSEGV"


def aside(until: float = 1e9) -> Supervision:
    return Supervision(BlackBox(), 1, "SIGSEGV", {"tiny:1b": SetAside(REASON, until)})


def test_a_request_does_not_load_it(tmp_path: Path) -> None:
    with making(tmp_path, supervision=aside()) as made:
        assert made.pool.status("tiny:1b") == "error" and made.pool.error("tiny:1b") == REASON
        with pytest.raises(ModelSetAside, match=rf"tiny:1b: {REASON}; POST /models/load tries it again") as refusal:
            made.pool.lease("first", strict=False)
        assert refusal.value.retry_after > 1000
        with pytest.raises(EngineClosed, match=f"no model is loaded.*; tiny:1b: {REASON}"):
            made.pool.lease(None, strict=False)
        other = made.pool.load_now("other:2b")

        async def scenario() -> None:
            async with made.pool.lease("nobody knows", strict=False) as leased:
                assert leased is other

        asyncio.run(scenario())
        assert len(made.engines) == 1


def test_an_explicit_load_tries_it_after_a_while(tmp_path: Path) -> None:
    with making(tmp_path, supervision=aside(time.monotonic() + 40)) as made:
        with pytest.raises(ModelLoadError, match=rf"{REASON}; it may be tried again in (39|40) s"):
            made.pool.load_now("tiny:1b")
        assert made.engines == []
    with making(tmp_path, supervision=aside(time.monotonic())) as made:
        made.pool.load_now("tiny:1b")
        assert made.pool.status("tiny:1b") == "ready" and made.pool.set_aside.reasons == {}
        made.pool.release_idle("tiny:1b")
        until(lambda: made.pool.current is None)
        made.pool.lease("tiny:1b", strict=True).release()


def test_the_black_box_has_what_is_loaded_and_loading(tmp_path: Path) -> None:
    box = BlackBox()
    with making(tmp_path, supervision=Supervision(box), on_demand="keep") as made:
        made.pool.load_now("tiny:1b")
        assert (box.loading, box.loaded) == ("", ["tiny:1b"]) and box.ram > 0
        before, gate = box.ram, made.hold("other")
        lease = made.pool.lease("other:2b", strict=True)
        until(lambda: box.loading == "other:2b")
        assert box.loaded == ["tiny:1b"] and box.ram > before
        gate.set()
        until(lambda: box.loaded == ["tiny:1b", "other:2b"])
        assert box.loading == ""
        lease.release()
        made.pool.release_idle("tiny:1b")
        until(lambda: box.loaded == ["other:2b"])
        with pytest.raises(ModelLoadError):
            made.pool.load_now("broken:3b")
        assert (box.loading, box.loaded) == ("", ["other:2b"])


def test_models_get_no_more_memory_than_the_limit() -> None:
    assert Memory(limit=1 << 20).room() == MemoryUse(ram=1 << 20)
    assert Memory(limit=1 << 60).room().ram < 1 << 60
    assert Memory(limit=100).limited(200) == 100 and Memory().limited(200) == 200
