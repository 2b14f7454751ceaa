"""Two real models at once, made small: requests, loads and unloads that overlap."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from locallab.engine.request import SamplingParams, TokenEvent
from locallab.fit.machine import RAM_MARGIN
from locallab.models import FileSource, ModelSpec, Registry, Store
from locallab.pool import Loaded, Memory, MemoryUse, Pool
from locallab.pool.memory import NO_MEMORY, Layers, Suited
from tests.support import tiny_gguf
from tests.support.live_engine import check
from tests.support.wait import PATIENCE

PROMPT = list(range(3, 23))
ANSWER = 12
MODELS = {"small:a": ("llama", 1), "small:b": ("lfm2", 2)}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder, registry = tmp_path_factory.mktemp("models"), Registry()
    for name, (architecture, seed) in MODELS.items():
        path = tiny_gguf.write(folder / f"{architecture}.gguf", architecture, seed=seed)
        registry.add("a test", ModelSpec(id=name, source=FileSource(path=path), description="made", context=256))
    return registry


class Small(Memory):
    """Memory for a second model, but not with all that it wants."""

    def room(self) -> MemoryUse:
        return MemoryUse(ram=RAM_MARGIN + (6 << 20))

    def suit(self, spec: ModelSpec, path: Path, layers: Layers, held: MemoryUse = NO_MEMORY, **more: Any) -> Suited:
        return super().suit(spec, path, layers, MemoryUse(1 << 30) if held.ram else held, **more)


@pytest.fixture(params=[("swap", Memory), ("swap", Small), ("keep", Memory), ("keep", Small)], ids=str)
def pool(request: pytest.FixtureRequest, registry: Registry, tmp_path: Path) -> Iterator[Pool]:
    settings = {"threads": 1, "gpu_layers": 0, "cache_ram_mib": 0}
    policy, memory = request.param
    pool = Pool(registry, Store(tmp_path), [("a test", settings)], on_demand=policy, memory=memory())
    yield pool
    pool.close()


def path_of(registry: Registry, name: str) -> Path:
    source = registry.get(name).source
    assert isinstance(source, FileSource)
    return source.path


async def tokens(loaded: Loaded) -> list[int]:
    """A greedy answer in full."""
    events: asyncio.Queue[TokenEvent] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=ANSWER)
    loaded.engine.submit(PROMPT, params, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
    found: list[int] = []
    while True:
        event = await events.get()
        found += event.token_ids
        if event.finish_reason:
            assert event.finish_reason == "length", event
            return found


async def ask(pool: Pool, name: str) -> list[int]:
    async with pool.lease(name, strict=True) as loaded:
        assert loaded.spec.id == name
        return await tokens(loaded)


def test_each_answers_as_itself_whatever_happens_around_it(pool: Pool, registry: Registry) -> None:
    dice = random.Random(4)

    async def scenario() -> list[tuple[str, list[int]]]:
        answers, others = [], []
        for index in range(40):
            name = dice.choice(list(MODELS))
            answers.append((name, asyncio.ensure_future(ask(pool, name))))
            if index % 8 == 3:
                others.append(asyncio.ensure_future(pool.unload(dice.choice(list(MODELS)))))
            if index % 8 == 6:
                others.append(asyncio.ensure_future(pool.load(dice.choice(list(MODELS)))))  # type: ignore[arg-type]
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*others), PATIENCE)
        return [(name, await asyncio.wait_for(answer, PATIENCE)) for name, answer in answers]

    answers = asyncio.run(scenario())
    for name in MODELS:
        found = {tuple(answer) for each, answer in answers if each == name}
        for answer in found:
            check(path_of(registry, name), PROMPT, answer)
    assert {len(answer) for _, answer in answers} == {ANSWER}
    assert pool.stats().failures == 0


def test_both_answer_at_once(registry: Registry, tmp_path: Path) -> None:
    """Each is asked while the other is in the middle of an answer."""
    pool = Pool(registry, Store(tmp_path), [("a test", {"threads": 1, "gpu_layers": 0})], on_demand="keep")

    async def scenario() -> None:
        async with pool.lease("small:a", strict=True) as first, pool.lease("small:b", strict=True) as second:
            assert {each.spec.id for each in pool.loaded} == set(MODELS)
            assert first.engine.info.architecture == "llama" and second.engine.info.architecture == "lfm2"
            both = await asyncio.gather(tokens(first), tokens(second), tokens(first))
            assert [len(answer) for answer in both] == [ANSWER] * 3

    try:
        asyncio.run(scenario())
        assert pool.stats().loads == 2
    finally:
        pool.close()
