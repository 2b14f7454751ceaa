"""What one owner has asked is nowhere found by another, but for what is public: in sequences, in host RAM, on disk."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from locallab.engine import Caller
from tests.support import tiny_gguf
from tests.support.stepped_engine import Request, SteppedEngine, check_answer
from tests.support.wait import until

ANN, BOB = Caller(id="key:ann", owner="key:ann"), Caller(id="key:bob", owner="key:bob")
TOKENS = [tiny_gguf.FIRST_PLAIN + (7 * i + i * i) % 40 for i in range(90)]
PUBLIC = TOKENS[:40]
each_kind = pytest.mark.parametrize("kind", ["llama", "gemma3", "lfm2"])
each_layout = pytest.mark.parametrize("layout", ["unified", "streams"])


@pytest.fixture
def path(kind: str, tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / f"{kind}.gguf", kind)


def cached(request: Request) -> int:
    assert request.last is not None and request.last.usage is not None
    return request.last.usage.cached_tokens


def told(request: Request) -> tuple[str, int]:
    [use] = [event.cache for event in request.events if event.cache is not None]
    return use.reason, use.at


@each_kind
@each_layout
@pytest.mark.parametrize("public", [0, 40])
@pytest.mark.parametrize("cache_tokens", [0, 400], ids=["in host RAM", "in a sequence"])
def test_another_owner_gets_what_is_public_alone(kind: str, path: Path, layout: str, public: int, cache_tokens: int) -> None:
    options = {"kv_layout": layout, "kv_tokens": 1024, "cache_ram_mib": 1, "cache_tokens": cache_tokens}
    with contextlib.closing(SteppedEngine(path, **options)) as engine:
        engine.share([PUBLIC] if public else [])
        first = engine.ask(TOKENS, 8, caller=ANN)
        engine.drain()
        other = engine.ask(TOKENS, 8, caller=BOB)
        engine.drain()
        again = engine.ask(TOKENS, 8, caller=ANN)
        engine.drain()
        assert (cached(first), cached(other), cached(again)) == (0, public, len(TOKENS) - 1)
        assert told(other) == (("end", public) if public else ("first time", 0)), "it tells that another has asked the same"
        for request in (first, other, again):
            check_answer(engine._model, request, exact=False)


@each_kind
@each_layout
@pytest.mark.parametrize("public", [0, 40])
def test_nobody_waits_for_what_another_owner_computes(kind: str, path: Path, layout: str, public: int) -> None:
    with contextlib.closing(SteppedEngine(path, kv_layout=layout, kv_tokens=1024, cache_ram_mib=1)) as engine:
        engine.share([PUBLIC] if public else [])
        asked = [engine.ask(TOKENS, 4, caller=caller) for caller in (ANN, BOB, ANN)]
        engine.drain()
        assert [cached(request) for request in asked] == [0, public, len(TOKENS) - 1]


@each_kind
def test_on_disk_owners_are_apart_too(kind: str, path: Path, tmp_path: Path) -> None:
    options = {"kv_tokens": 1024, "cache_ram_mib": 1, "cache_tokens": 0, "cache_disk": str(tmp_path / "cache")}

    def engine() -> SteppedEngine:
        made = SteppedEngine(path, **options)
        made.share([PUBLIC])
        return made

    with contextlib.closing(engine()) as before:
        before.ask(TOKENS, 8, caller=ANN)
        before.drain()
        before.rest()
        before.ask(TOKENS[:1], 1, caller=ANN)  # another sequence, for which the first one goes
        before.drain()
        until(lambda: len(list((tmp_path / "cache").rglob("*.prefix"))) >= 1 and not before._worker._mover._disk._waiting)
    for who, expected in ((BOB, len(PUBLIC)), (ANN, len(TOKENS) - 1)):
        with contextlib.closing(engine()) as after:
            request = after.ask(TOKENS, 4, caller=who)
            after.drain(1_000_000)
            assert cached(request) == expected
            check_answer(after._model, request, exact=False)
