from __future__ import annotations

from pathlib import Path

import pytest

from locallab.engine import Engine
from locallab.engine.limits import LEAST_CACHE, Limits, idle_cells, slots
from locallab.settings import EngineSettings

from . import tinygguf

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


def test_idle_cells_of_a_model_without_attention_cost_nothing(tmp_path: Path) -> None:
    assert idle_cells(LIMITS, 1e-2, 0.0) == LIMITS.cache_cells
    path = tinygguf.write(tmp_path / "mamba.gguf", "mamba")
    engine = Engine(path, EngineSettings(context=128, parallel=2, threads=1, gpu_layers=0))  # cache_tokens as by default
    engine.close()
