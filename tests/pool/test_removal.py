from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from locallab.errors import NotOnDisk, NotRemovable, UnknownModel
from locallab.models import HubSource, ModelSpec
from locallab.models.spec import Adapter
from locallab.models.store import Kept
from locallab.pool.removal import remove
from tests.support.fake_pool import Made, making, soon

SPEC = ModelSpec(id="own:1b", source=HubSource("acme/own", file="own.gguf"), description="a model")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with making(tmp_path) as found:
        found.pool.registry.add("a test", SPEC)
        found.pool.registry.add("a test", msgspec.structs.replace(SPEC, id="tutor:1b", base="own:1b"))
        folder = found.pool.store.folder(SPEC)
        folder.mkdir(parents=True)
        (folder / "own.gguf").write_bytes(b"GGUF" * 100)
        found.pool.store.refer(SPEC, "model", [Kept("own.gguf", 400)])
        yield found


def test_it_is_unloaded_and_removed_and_stays_registered(made: Made) -> None:
    made.pool.load_now("own:1b")
    assert asyncio.run(remove(made.pool, "OWN:1b")) > 400
    assert made.pool.get("own:1b") is None and not made.pool.store.has(SPEC)
    with pytest.raises(NotOnDisk, match="own:1b is not on disk: nothing to remove"):
        asyncio.run(remove(made.pool, "own:1b"))


def test_what_shares_its_files_is_unloaded_too(made: Made) -> None:
    made.pool.load_now("tutor:1b")
    asyncio.run(remove(made.pool, "own:1b"))
    assert made.pool.loaded == []


def test_a_running_request_is_waited_for(made: Made) -> None:
    async def removing() -> None:
        made.pool.start(asyncio.get_running_loop())
        async with made.asking("own:1b") as lease:
            await lease.wait()
            going = asyncio.ensure_future(remove(made.pool, "own:1b"))
            await soon(lambda: made.pool.loaded != [] and made.pool._plan.residents["own:1b"].unloading)
            assert made.pool.store.has(SPEC)
        await going

    asyncio.run(removing())
    assert not made.pool.store.has(SPEC)


def test_what_is_not_ours_or_in_use_stays(made: Made) -> None:
    with pytest.raises(NotRemovable, match="which LocalLab did not fetch"):
        asyncio.run(remove(made.pool, "tiny:1b"))
    with pytest.raises(UnknownModel):
        asyncio.run(remove(made.pool, "none"))
    with made.pool.store.lock(SPEC), pytest.raises(NotRemovable, match="is being fetched"):
        asyncio.run(remove(made.pool, "own:1b"))
    adapter = Adapter(name="pirate", source=HubSource("acme/loras", file="pirate.gguf"))
    made.pool.registry.adapt(SPEC, [adapter])
    with pytest.raises(NotRemovable, match="both are removed with own:1b"):
        asyncio.run(remove(made.pool, "own:1b:pirate"))
    with contextlib.suppress(UnknownModel):
        assert made.pool.store.has(SPEC)
