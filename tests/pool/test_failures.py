"""Engines that end by an error, and the models that are loaded again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from locallab.errors import EngineDied
from locallab.pool import failures
from locallab.pool.failures import Failures
from tests.support.fake_pool import Made, making, name_of
from tests.support.wait import until


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with making(tmp_path) as made:
        made.pool.load_now("tiny:1b")
        yield made


@pytest.mark.parametrize("asked", ["tiny:1b", None], ids=["by name", "by none"])
@pytest.mark.parametrize("policy", ["swap", "keep", "refuse"])
def test_the_next_request_loads_it_again(tmp_path: Path, policy: str, asked: str | None) -> None:
    with making(tmp_path, on_demand=policy) as made:
        made.pool.load_now("tiny:1b")
        made.engines[0].die("a bug")
        assert made.pool.status("tiny:1b") == "error" and "a bug" in (made.pool.error("tiny:1b") or "")
        assert made.pool.get("tiny:1b") is None and made.pool.loaded == [] and made.pool.current is None
        assert len(made.engines) == 1
        assert asyncio.run(made.answer(asked)) == "tiny:1b"
        assert (made.pool.status("tiny:1b"), made.pool.error("tiny:1b"), len(made.engines)) == ("ready", None, 2)
        assert (made.pool.stats().deaths, made.pool.stats().loads) == (1, 2)


def test_a_request_that_holds_it_ends_and_the_model_goes(made: Made) -> None:
    async def scenario() -> None:
        async with made.pool.lease("tiny:1b", strict=True) as loaded:
            made.engines[0].die()
            until(lambda: made.pool.stats().unloads == 1)  # not held up by the lease
            async with made.pool.lease("tiny:1b", strict=True) as again:
                assert again is not loaded
        assert name_of(made.pool.current) == "tiny:1b"

    asyncio.run(scenario())


def test_others_stay(tmp_path: Path) -> None:
    with making(tmp_path, on_demand="keep") as made:
        made.pool.load_now("other:2b")
        made.pool.load_now("tiny:1b")
        made.engine("tiny").die()
        assert [each.spec.id for each in made.pool.loaded] == ["other:2b"]
        assert asyncio.run(made.answer("other:2b")) == "other:2b"
        assert len(made.engines) == 2


def test_one_that_dies_again_and_again_is_not_loaded_in_a_tight_loop(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(failures.time, "monotonic", lambda: now[0])
    waits = []
    for _ in range(8):
        made.engines[-1].die("a bug")
        try:
            made.pool.lease("tiny:1b", strict=True).release()
            waits.append(0)
        except EngineDied as error:
            assert "a bug" in str(error)
            waits.append(error.retry_after)
            now[0] += error.retry_after
        asyncio.run(made.answer("tiny:1b"))
    assert waits == [0, 2, 4, 8, 16, 32, 60, 60]


def test_an_explicit_load_does_not_wait(made: Made) -> None:
    for _ in range(3):
        made.engines[-1].die()
        made.pool.load_now("tiny:1b")
    assert len(made.engines) == 4
    assert asyncio.run(made.answer("tiny:1b")) == "tiny:1b"


def test_a_long_life_is_forgiven() -> None:
    noted = Failures({})
    for lived in (1.0, 1.0, failures.CALM + 1):
        noted.death("a", EngineDied("x"), lived)
    noted.check("a")
    noted.death("a", EngineDied("x"), 1.0)
    with pytest.raises(EngineDied):
        noted.check("a")


def test_an_engine_that_dies_at_once_or_while_the_pool_closes(tmp_path: Path) -> None:
    with making(tmp_path) as made:
        make = made.make

        def dead(*of: object) -> object:
            engine = make(*of)  # type: ignore[arg-type]
            engine.die()
            return engine

        made.pool._engine = dead  # type: ignore[assignment]
        made.pool.load_now("tiny:1b")
        until(lambda: made.pool.status("tiny:1b") == "error")
        made.pool._engine = make
        assert asyncio.run(made.answer("tiny:1b")) == "tiny:1b"
        made.pool.close()
        made.engines[-1]._death.set_result(EngineDied("late"))
        assert made.pool.stats().deaths == 1
