from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import llama_cpp
import pytest

from locallab import hardware
from locallab.engine import TextEngine, llama
from locallab.engine.costs import StepCosts
from locallab.engine.limits import (
    GPU_WALK_SHARE,
    LEAST_CACHE,
    LEAST_SPACING,
    WALK_SHARE,
    Limits,
    context_length,
    idle_cells,
    kv_bytes,
    kv_room,
    limits,
    snapshot_spacing,
    windowed_layers,
)
from locallab.errors import ModelLoadError
from locallab.memory_model import DEFAULT_CONTEXT, kv_cache, whole_cells
from locallab.settings import EngineSettings
from tests.support import tiny_gguf
from tests.support.gguf_headers import F16, Made
from tests.support.live_engine import ask, running

LIMITS = Limits(cells=4096, batch=512, parallel=4, slots=8, cache_cells=1024, step_seconds=0.2)


@dataclasses.dataclass(frozen=True)
class FakeModel:
    """What limits are made from. A token of it takes 1,000 bytes; which layers have a window is not known."""

    memory: llama.Memory = "attention"
    n_ctx_train: int = 4096
    n_layer: int = 10
    n_head: int = 9
    path: Path = Path("model.gguf")

    @property
    def keeps_state(self) -> bool:
        return self.memory in ("recurrent", "hybrid")

    @property
    def sliding_window(self) -> int:
        return 512 if self.memory == "window" else 0

    def kv_bytes_per_token(self, _kv_type: str, _kv_type_v: str) -> int:
        return 1000

    def meta(self, _key: str) -> None:
        return None


PLENTY = 1 << 40


def limits_of(memory: llama.Memory = "attention", free: int = PLENTY, on_gpu: bool = False, **settings: Any) -> Limits:
    return limits(FakeModel(memory), EngineSettings(**settings), free, on_gpu)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Case:
    """Settings and a machine, and the limits that they give."""

    expected: tuple[str, int, int, int]
    """Layout, cells, parallel, slots."""
    free: int = PLENTY
    on_gpu: bool = False
    memory: llama.Memory = "attention"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


LAYOUTS = {
    "by default eight contexts fit": Case(("streams", 32768, 8, 8)),
    "on a GPU one for each request": Case(("streams", 64 * 4096, 64, 64), on_gpu=True),
    "80% of what a GPU has free": Case(("unified", 12 * 4096, 64, 127), free=12 * 4096 * 1250, on_gpu=True),
    "on a GPU for some layers": Case(("unified", 32768, 64, 127), on_gpu=True, settings={"gpu_layers": 10}),
    "a GPU for all layers": Case(("streams", 64 * 4096, 64, 64), on_gpu=True, settings={"gpu_layers": 11}),
    "on a GPU more are configured": Case(("streams", 65536, 16, 16), on_gpu=True, settings={"kv_tokens": 65536}),
    "few requests": Case(("streams", 8192, 2, 2), settings={"parallel": 2}),
    "one request": Case(("streams", 4096, 1, 1), settings={"parallel": 1}),
    "a quarter of what is free": Case(("unified", 16384, 64, 127), free=16384 * 4000),
    "at least a context": Case(("unified", 4096, 64, 127), free=4096 * 1000),
    "streams are wanted": Case(("streams", 16384, 4, 4), free=16384 * 4000, settings={"kv_layout": "streams"}),
    "one stream": Case(("streams", 4096, 1, 1), free=4096 * 1000, settings={"kv_layout": "streams"}),
    "a pool is wanted": Case(("unified", 32768, 64, 127), settings={"kv_layout": "unified"}),
    "a window in a pool": Case(("unified", 32768, 64, 128), memory="window", settings={"kv_layout": "unified"}),
    "states in a pool": Case(("unified", 32768, 16, 32), memory="recurrent", settings={"kv_layout": "unified", "parallel": 16}),
    "a pool in whole blocks": Case(("streams", 1024, 1, 1), settings={"kv_tokens": 1000, "parallel": 1}),
}


@pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS)
def test_limits_follow_from_the_room(case: Case) -> None:
    found = limits_of(case.memory, case.free, case.on_gpu, **case.settings)
    assert (found.layout, found.cells, found.parallel, found.slots) == case.expected
    assert found.layout == "unified" or found.cells // found.parallel >= 4096 or found.parallel == 1


@pytest.mark.parametrize("memory", ["attention", "window", "recurrent", "hybrid"])
def test_only_full_attention_is_cut_and_shared(memory: llama.Memory) -> None:
    for layout in ("unified", "streams"):
        found = limits_of(memory, kv_layout=layout)
        assert found.cuts == (memory == "attention")
        assert found.shares == (memory == "attention" and layout == "unified")
        assert found.pooled == (layout == "unified")


@pytest.mark.parametrize(
    ("on_gpu", "kv_type", "tile"),
    [(False, "f16", 64), (False, "f32", 64), (False, "q8_0", 0), (False, "bf16", 0), (True, "f16", 0)],
)
def test_tiles_are_a_cpu_s_with_floats_that_it_computes_with(on_gpu: bool, kv_type: str, tile: int) -> None:
    found = limits_of(on_gpu=on_gpu, kv_type=kv_type, threads=3)
    assert (found.tile, found.heads, found.threads) == (tile, 9, 3)


def test_there_are_no_tiles_for_keys_and_values_of_two_types() -> None:
    assert limits_of(kv_type_k="f32").tile == 0
    assert limits_of(kv_type="q8_0", kv_type_k="f16", kv_type_v="f16").tile == 64


WORK = {  # tile, count, start: work
    "every token sees what is before it": ((0, 10, 100), 10 * 105),
    "whole tiles, cut without loss": ((64, 512, 0), 512 * 256),
    "a tile that two threads cut for 9 heads: 16 tiles for 9": ((64, 64, 968), 64 * 16 / 9 * 1000),
    "less than a tile, each alone": ((64, 10, 995), 4 * 10 * 1000),
    "nothing": ((64, 0, 100), 0),
}


@pytest.mark.parametrize(("arguments", "expected"), WORK.values(), ids=WORK)
def test_work_of_attention(arguments: tuple[int, int, int], expected: float) -> None:
    tile, count, start = arguments
    limits = dataclasses.replace(LIMITS, tile=tile, heads=9, threads=2)
    assert limits.work(count, start) == pytest.approx(expected)


def test_settings_become_limits() -> None:
    found = limits_of(cache_tokens=123, cache_ram_mib=3, step_ms=50, batch=77)
    assert (found.cache_cells, found.cache_bytes, found.step_seconds, found.batch) == (123, 3 << 20, 0.05, 77)


def test_what_is_computed_in_one_go() -> None:
    assert limits_of().ubatch == 512
    assert limits_of(ubatch=1024).ubatch == 1024
    assert limits_of(ubatch=1024, batch=100).ubatch == 100
    assert limits_of("window", ubatch=1024).batch == 1024  # a window is never computed in parts
    assert limits_of("window").batch == 512


@pytest.mark.parametrize(("ubatch", "largest"), [(None, 512), (700, 700)])
def test_a_gpu_is_measured_with_the_shapes_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ubatch: int | None, largest: int
) -> None:
    seen: list[tuple[int, int]] = []
    observe = StepCosts.observe

    def spy(costs: StepCosts, n_decode: int, n_prompt: int, *rest: float) -> None:
        seen.append((n_decode, n_prompt))
        observe(costs, n_decode, n_prompt, *rest)

    monkeypatch.setattr(StepCosts, "observe", spy)
    path = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    options = {"context": 1024, "kv_tokens": 8192, "parallel": 8, "ubatch": ubatch}
    with running(path, **options):
        assert seen == [(1, 0), (1, 0), (0, 64)]
    seen.clear()
    monkeypatch.setattr(llama, "supports_gpu", lambda: True)
    with running(path, **options, gpu_layers=-1) as engine:
        assert set(seen) == {(8, 0), (0, 512), (0, largest), (1, 0), (0, 64)}
        assert len(ask(engine, [1, 30, 31], 4).tokens) == 4


@pytest.mark.parametrize("gpu", [False, True])
def test_a_gpu_is_waited_for_only_where_there_are_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    prompt = [1, *(3 + 7 * index % 250 for index in range(419))]
    with running(path, context=512) as engine:
        expected = ask(engine, prompt, 3).tokens
    monkeypatch.setattr(llama, "supports_gpu", lambda: gpu)
    with running(path, context=512, batch=64, gpu_layers=-1, step_ms=600_000) as engine:
        with (
            mock.patch.object(llama_cpp, "llama_decode", side_effect=llama_cpp.llama_decode) as decoded,
            mock.patch.object(llama_cpp, "llama_synchronize", side_effect=llama_cpp.llama_synchronize) as waited,
        ):
            assert ask(engine, prompt, 3).tokens == expected
        assert decoded.call_count >= 9, "seven parts of a prompt or more, and a step for each further token"
        assert waited.call_count == (3 if gpu else decoded.call_count)


def test_a_pool_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="a KV pool of 4096 tokens needs"):
        limits_of(free=4095 * 1000)


@pytest.mark.parametrize(
    ("context", "kv_tokens", "trained", "expected"),
    [
        pytest.param(None, None, 4096, 4096, id="what it was trained for"),
        pytest.param(None, None, 131072, DEFAULT_CONTEXT, id="no more than the default"),
        pytest.param(None, None, 0, DEFAULT_CONTEXT, id="unknown"),
        pytest.param(100_000, None, 4096, 100_000, id="what is configured"),
        pytest.param(2048, 1024, 4096, 1024, id="no more than the pool"),
    ],
)
def test_the_context_of_a_request(context: int | None, kv_tokens: int | None, trained: int, expected: int) -> None:
    settings = EngineSettings(context=context, kv_tokens=kv_tokens)
    assert context_length(FakeModel(n_ctx_train=trained), settings) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row_bytes", "fixed_bytes", "cache_bytes", "expected"),
    [
        (10, 0, 1000, True),
        (10, 0, 999, False),
        (10, 1, 1000, False),
        (0, 1000, 1000, True),
        (0, 1001, 1000, False),
        (0, 0, 0, False),
    ],
    ids=str,
)
def test_what_host_ram_holds(row_bytes: int, fixed_bytes: int, cache_bytes: int, expected: bool) -> None:
    found = dataclasses.replace(LIMITS, row_bytes=row_bytes, fixed_bytes=fixed_bytes, cache_bytes=cache_bytes)
    assert found.holds(100) is expected


MIB = 1 << 20

SPACINGS = {
    "no room for one": (2 * MIB, MIB, 8192, 0.01, 0.001, 0),
    "no room at all": (MIB, 0, 8192, 0.01, 0.001, 0),
    "saved at once": (MIB, 1024 * MIB, 8192, 0.0, 0.001, LEAST_SPACING),
    "a save costs a twentieth of a prompt": (MIB, 1024 * MIB, 8192, 0.05, 0.001, 1000),
    "a prompt takes a quarter of the room": (MIB, 32 * MIB, 8192, 0.0, 0.001, 1024),
    "both": (MIB, 32 * MIB, 8192, 0.1, 0.001, 2000),
    "no time is known": (MIB, 1024 * MIB, 8192, 0.05, 0.0, LEAST_SPACING),
    "nothing is fixed": (0, 0, 8192, 0.05, 0.001, 1000),
}


@pytest.mark.parametrize(("fixed", "cache", "context", "save", "token", "expected"), SPACINGS.values(), ids=SPACINGS)
def test_snapshots_of_a_long_prompt(fixed: int, cache: int, context: int, save: float, token: float, expected: int) -> None:
    assert snapshot_spacing(fixed, cache, context, save, token) == expected


def test_idle_cells_cost_little() -> None:
    assert idle_cells(LIMITS, 1e-2, 1e-7) == 1000
    assert idle_cells(LIMITS, 1e-2, 1e-3) == LEAST_CACHE
    assert idle_cells(LIMITS, 1.0, 1e-9) == LIMITS.cache_cells


def test_idle_cells_of_a_gpu_may_cost_more() -> None:
    assert GPU_WALK_SHARE > WALK_SHARE
    assert idle_cells(LIMITS, 1e-4, 1e-8, GPU_WALK_SHARE) == 1000
    assert idle_cells(LIMITS, 1e-4, 1e-8) == 100


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
    assert engine.info.kv_tokens == 3072, "80% of what is free there, in whole contexts"


def test_idle_cells_of_a_model_without_attention_cost_nothing(tmp_path: Path) -> None:
    assert idle_cells(LIMITS, 1e-2, 0.0) == LIMITS.cache_cells
    path = tiny_gguf.write(tmp_path / "mamba.gguf", "mamba")
    engine = TextEngine(path, EngineSettings(context=128, parallel=2, threads=1, gpu_layers=0))  # cache_tokens as by default
    engine.close()


def test_layers_with_a_window_take_less(tmp_path: Path) -> None:
    made = Made(
        architecture="gemma3",
        type=F16,
        layers=6,
        width=64,
        heads=2,
        kv_heads=1,
        head=32,
        feed_forward=128,
        vocabulary=300,
        window=64,
        spelled=True,
    )
    model = llama.Model(made.write(tmp_path / "windows.gguf"), 0)
    settings, layer = EngineSettings(), 2 * 32 * 2
    streams = kv_cache("streams", 8 * 4096, 4096, 8, False, False)
    assert (windowed_layers(model), model.sliding_window) == (5, 64)
    assert kv_bytes(model, settings, streams) == layer * (8 * 4096 + 5 * 8 * 768)
    pool = kv_cache("unified", 8 * 4096, 4096, 8, False, False)
    assert kv_bytes(model, settings, pool) == layer * (8 * 4096 + 5 * whole_cells(64 * 72 + 512))
    model.close()


def test_a_cache_whose_size_is_not_known_is_not_refused(tmp_path: Path) -> None:
    """Of a hybrid, the layers that have a KV cache are not known: what `fit` computed from the file may be right."""
    model = llama.Model(tiny_gguf.write(tmp_path / "hybrid.gguf", "lfm2"), 0)
    assert limits(model, EngineSettings(kv_tokens=4096), 1, on_gpu=False).cells == 4096
    model.close()
