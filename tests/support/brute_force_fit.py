"""The memory of a model as llama.cpp reports it: from a dry run without allocation, and from a real one in its own process."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp

from locallab.engine import SamplingParams, TextEngine, TokenEvent
from locallab.engine.llama import KV_TYPES
from locallab.fit import Load
from locallab.memory_model import KvCache
from locallab.settings import EngineSettings

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect the lines that llama.cpp logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("locallab.llama")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def rehearsed(path: Path, load: Load, cache: KvCache) -> dict[str, float]:
    """Return the bytes of weights, of KV cache with states, of compute buffers and of logits, from a load that allocates
    nothing."""
    model_params = llama_cpp.llama_model_default_params()
    model_params.no_alloc = True
    model_params.load_mode = 0  # no mapped file
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = cache.cells, load.batch, min(load.ubatch, load.batch)
    params.n_seq_max, params.n_outputs_max = cache.sequences, cache.outputs
    params.type_k, params.type_v = (KV_TYPES[each] for each in load.kv_types)
    params.kv_unified = cache.layout == "unified"
    params.swa_full = False
    with logged() as lines:
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        assert model, lines[-3:]
        weights = llama_cpp.llama_model_size(model)
        context = llama_cpp.llama_init_from_model(model, params)
        assert context, lines[-3:]
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
    return {
        "weights": weights,
        "memory": _total(lines, r"size = +([\d.]+) MiB \( *\d+ cells"),
        "compute": _total(lines, r" compute buffer size += +([\d.]+) MiB"),
        "logits": _total(lines, r" output buffer size += +([\d.]+) MiB"),
    }


def measured(path: Path, settings: EngineSettings) -> int:
    """Return the bytes of RAM that a process gains by loading the model and reading a prompt as long as a step."""
    command = [sys.executable, "-m", "tests.support.brute_force_fit", str(path), json.dumps(dataclasses.asdict(settings))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def _total(lines: list[str], pattern: str) -> float:
    return sum(float(found[1]) for line in lines if (found := re.search(pattern, line))) * MIB


def _resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def _use(path: Path, settings: EngineSettings) -> int:
    before = _resident()
    engine = TextEngine(path, settings)
    ended = threading.Event()

    def listen(event: TokenEvent) -> None:
        if event.finish_reason:
            ended.set()

    try:
        engine.submit([3 + i % 250 for i in range(512)], SamplingParams(max_tokens=1), listen)
        ended.wait()
        return _resident() - before
    finally:
        engine.close()


def _main(path: str, settings: str) -> None:
    values: dict[str, Any] = json.loads(settings)
    print(_use(Path(path), EngineSettings(**values)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
