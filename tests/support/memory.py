"""A script that prints this process's memory before a model is loaded, with it, and after it was unloaded, several times.

`python rss.py MODEL.gguf` prints a JSON list of [before, loaded, after, measured at the load], bytes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tempfile
from pathlib import Path

import psutil

from locallab.engine.request import SamplingParams, TokenEvent
from locallab.models import FileSource, ModelSpec, Registry, Store
from locallab.pool import Pool

TURNS = 3
SETTINGS = [("a test", {"threads": 1, "gpu_layers": 0, "context": 512, "kv_tokens": 8192})]


async def ask(pool: Pool) -> None:
    """Run a request to its end."""
    async with pool.lease("model", strict=True) as loaded:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def listen(event: TokenEvent) -> None:
            if event.finish_reason:
                loop.call_soon_threadsafe(ended.set)

        loaded.engine.submit(range(3, 103), SamplingParams(max_tokens=8), listen)
        await ended.wait()


async def main(pool: Pool) -> list[list[int]]:
    turns = []
    for _ in range(TURNS):
        gc.collect()
        before = rss()
        await ask(pool)
        current = pool.current
        assert current is not None
        loaded, measured = rss(), current.memory.ram
        del current
        await pool.unload("model")
        turns.append([before, loaded, rss(), measured])
    return turns


def rss() -> int:
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    path = Path(sys.argv[1])
    registry = Registry()
    registry.add("a test", ModelSpec(id="model", source=FileSource(path=path), size=path.stat().st_size, description="a test"))
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(registry, Store(Path(folder)), SETTINGS)
        try:
            print(json.dumps(asyncio.run(main(pool))))
        finally:
            pool.close()
