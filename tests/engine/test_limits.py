from __future__ import annotations

from pathlib import Path

import pytest

from locallab import hardware
from locallab.engine import TextEngine, llama
from locallab.engine.limits import LEAST_CACHE, Limits, idle_cells, kv_room
from locallab.errors import ModelLoadError
from locallab.memory_model import slots
from locallab.settings import EngineSettings
from tests.support import tiny_gguf

LIMITS = Limits(cells=4096, batch=512, parallel=4, slots=8, cache_cells=1024, step_seconds=0.2)


@pytest.mark.parametrize(
    ("parallel", "keeps_state", "expected"),
    [(1, False, 65), (64, False, 128), (192, False, 256), (1, True, 2), (16, True, 32), (64, True, 128), (192, True, 256)],
)
def test_finished_sequences_with_states_are_no_more_than_running_ones(parallel: int, keeps_state: bool, expected: int) -> None:
    assert slots(parallel, keeps_state) == expected


def test_idle_cells_cost_little() -> None:
    assert idle_cells(LIMITS, 1e-2, 1e-7) == 1000
    assert idle_cells(LIMITS, 1e-2, 1e-3) == LEAST_CACHE
    assert idle_cells(LIMITS, 1.0, 1e-9) == LIMITS.cache_cells


@pytest.mark.parametrize(
    ("gpus", "gpu_layers", "expected"),
    [
        ([], -1, 100),
        ([60], -1, 60),
        ([60, 20], -1, 80),
        ([60], 99, 60),
        ([60], 0, 100),
        ([60], 1, 100),
        ([60], 6, 120),
        ([40], 6, 80),
        ([300], 9, 375),
        ([None], -1, 100),
        ([0], -1, 0),
    ],
    ids=str,
)
def test_a_kv_pool_lies_where_its_layers_are(gpus: list[int | None], gpu_layers: int, expected: int) -> None:
    """100 bytes of RAM are free; the model has 10 layers, and the output."""
    assert kv_room(100, gpus, gpu_layers, 10) == expected


def test_a_kv_pool_beyond_the_gpu_s_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"name": "a GPU", "free_bytes": 1 << 20}
    monkeypatch.setattr(hardware, "gpus", lambda: [gpu])
    monkeypatch.setattr(llama, "supports_gpu", lambda: True)
    path = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")  # 512 bytes a token
    with pytest.raises(ModelLoadError, match="a KV pool of 4096 tokens"):
        TextEngine(path, EngineSettings(context=128, kv_tokens=4096, threads=1))
    gpu["free_bytes"] = 2 << 20
    engine = TextEngine(path, EngineSettings(context=128, threads=1))
    engine.close()
    assert engine.info.kv_tokens == 1024, "a quarter of what is free there"


def test_idle_cells_of_a_model_without_attention_cost_nothing(tmp_path: Path) -> None:
    assert idle_cells(LIMITS, 1e-2, 0.0) == LIMITS.cache_cells
    path = tiny_gguf.write(tmp_path / "mamba.gguf", "mamba")
    engine = TextEngine(path, EngineSettings(context=128, parallel=2, threads=1, gpu_layers=0))  # cache_tokens as by default
    engine.close()
