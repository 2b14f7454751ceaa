from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from locallab import hardware
from locallab.pool.memory import MARGIN, Memory, MemoryUse, Reading
from locallab.settings import EngineSettings
from tests.engine import tinygguf

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def test_memory_really_returns(model_path: Path) -> None:
    """In a process of its own, with the real model: before, loaded, after, three times in a row."""
    script = Path(__file__).with_name("rss.py")
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script, model_path], env=environ, capture_output=True, text=True, check=True)
    turns = json.loads(done.stdout)
    first = turns[0][0]
    for before, loaded, after, measured in turns:
        took = loaded - before
        assert took > 150 * MIB, "this model's weights and KV pool take more"
        assert after - first < took / 5
        assert took / 2 < measured < 3 * took / 2
    assert len(turns) == 3


def test_weights_in_use_are_no_room(tmp_path: Path) -> None:
    """The system counts mapped files as memory it can have back."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(64 * MIB))
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    descriptor = os.open(file, os.O_RDONLY)
    before = psutil.Process().memory_info().shared
    populated = 0x1 | 0x8000  # MAP_SHARED | MAP_POPULATE
    address = libc.mmap(None, 64 * MIB, 0x1, populated, descriptor, 0)
    os.close(descriptor)
    try:
        mapped = psutil.Process().memory_info().shared
        assert mapped - before >= 60 * MIB
        assert Memory().room().ram <= hardware.memory()["available_bytes"] - mapped + 32 * MIB
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(64 * MIB))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tinygguf.write(tmp_path / "tiny.gguf", "llama")


def test_need(tiny: Path) -> None:
    """Four layers of two KV heads, each with 16 numbers of a key and 16 of a value."""
    per_token = 4 * 2 * 32 * 2
    size = tiny.stat().st_size

    def likely(**settings: Any) -> int:
        need = Memory().need(tiny, EngineSettings(**settings))
        assert need.path == tiny and need.least == MemoryUse(ram=size) and need.likely.vram == 0
        return need.likely.ram - size - MARGIN

    assert likely() == 16384 * per_token
    assert likely(kv_tokens=1000) == 1000 * per_token
    assert likely(kv_tokens=1000, kv_type="f32") == 2000 * per_token
    assert likely(context=100, parallel=2) == 200 * per_token
    assert likely(context=20_000) == 40_000 * per_token


def test_need_of_a_hybrid_counts_its_attention_layers(tmp_path: Path) -> None:
    path = tinygguf.write(tmp_path / "lfm2.gguf", "lfm2")
    need = Memory().need(path, EngineSettings(kv_tokens=1000))
    assert need.likely.ram - path.stat().st_size - MARGIN == 1000 * 2 * 2 * 32 * 2


def test_need_of_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(996))
    assert Memory().need(path, EngineSettings()).likely == MemoryUse(ram=1250 + MARGIN)


GPU = {"name": "a GPU", "total_bytes": 16 << 30, "free_bytes": 10 << 30}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    gpus: list[dict[str, Any]] = [dict(GPU), dict(GPU)]
    monkeypatch.setattr(hardware, "gpus", lambda: gpus)
    monkeypatch.setattr(hardware, "own_vram", lambda: None)
    return gpus


def test_need_on_a_gpu(gpu: list[dict[str, Any]], tiny: Path) -> None:
    memory = Memory(gpu=True)
    likely = Memory().need(tiny, EngineSettings()).likely.ram
    size = tiny.stat().st_size
    assert memory.need(tiny, EngineSettings()).least == MemoryUse(vram=size)
    assert memory.need(tiny, EngineSettings()).likely == MemoryUse(MARGIN, likely)
    assert memory.need(tiny, EngineSettings(gpu_layers=2)).likely == MemoryUse(likely, likely)
    assert memory.need(tiny, EngineSettings(gpu_layers=0)).likely == MemoryUse(likely, 0)
    assert memory.room().vram == 20 << 30


def test_a_gpu_without_memory_of_its_own_counts_as_ram(gpu: list[dict[str, Any]], tiny: Path) -> None:
    for each in gpu:
        each["free_bytes"] = each["total_bytes"] = None
    memory = Memory(gpu=True)
    assert not memory.gpu and memory.room().vram == 0 and memory.reading().device == 0
    assert memory.need(tiny, EngineSettings()).likely.vram == 0


def test_readings(gpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's own figure for this process counts, if it has one; else what the GPUs hold more than before."""
    memory = Memory(gpu=True)
    before = memory.reading()
    gpu[1]["free_bytes"] -= 3 << 30
    assert memory.reading().since(before).vram == 3 << 30
    monkeypatch.setattr(hardware, "own_vram", lambda: 2 << 30)
    assert memory.reading().since(before).vram == 2 << 30
    assert Reading(5, own=7).since(Reading(9, own=3)) == MemoryUse(0, 4)
    assert Reading(5, device=7).since(Reading(1, device=9)) == MemoryUse(4, 0)
