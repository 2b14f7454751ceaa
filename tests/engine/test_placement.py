from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import llama_cpp
import numpy as np
import psutil
import pytest

from locallab.engine import TextEngine, llama, placement
from locallab.engine.batch import Batch
from locallab.engine.context import Context
from locallab.engine.placement import Placement, set_numa
from locallab.errors import ConfigError, ModelLoadError
from locallab.placement_settings import KvType
from locallab.settings import EngineSettings
from tests.support import tiny_gguf
from tests.support.brute_force_fit import logged
from tests.support.gguf_headers import F16, Made
from tests.support.live_engine import ask, running

PROMPT = [1, 30, 31, 40]


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "mixture.gguf", "gpt-oss")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "tiny.gguf", "llama")


def filled(**settings: Any) -> tuple[Any, list[Any]]:
    params = llama_cpp.llama_model_default_params()
    return params, Placement.of(EngineSettings(**settings)).fill(params)


def test_nothing_set_is_llama_cpp_s_default() -> None:
    default = llama_cpp.llama_model_default_params()
    params, kept = filled()
    for name in ("n_gpu_layers", "split_mode", "load_mode", "main_gpu", "tensor_buft_overrides"):
        assert getattr(params, name) == getattr(default, name), name
    assert not params.tensor_split and not kept


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        ({"split_mode": "none", "main_gpu": 2}, "main_gpu", 2),
        ({"split_mode": "none"}, "split_mode", llama_cpp.LLAMA_SPLIT_MODE_NONE),
        ({"split_mode": "row"}, "split_mode", llama_cpp.LLAMA_SPLIT_MODE_ROW),
        ({"split_mode": "tensor"}, "split_mode", llama_cpp.LLAMA_SPLIT_MODE_TENSOR),
        ({"gpu_layers": 7}, "n_gpu_layers", 7),
        ({"mmap": False}, "load_mode", llama_cpp.LLAMA_LOAD_MODE_NONE),
        ({"mlock": True}, "load_mode", llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK),
        ({"mmap": False, "mlock": True}, "load_mode", llama_cpp.LLAMA_LOAD_MODE_MLOCK),
    ],
    ids=str,
)
def test_settings_are_llama_cpp_s_parameters(settings: dict[str, Any], name: str, expected: int) -> None:
    assert getattr(filled(**settings)[0], name) == expected


def test_shares_of_gpus() -> None:
    params, kept = filled(tensor_split="3,1")
    assert params.tensor_split[:2] == [3.0, 1.0]
    assert len(kept) == 1


def test_experts_come_after_what_is_named() -> None:
    found = Placement.of(EngineSettings(override_tensor="a=CPU,b=CPU", n_cpu_moe=2)).overrides
    assert found[:2] == (("a", "CPU"), ("b", "CPU")) and re.search(found[2][0], "blk.1.ffn_up_exps.weight")
    assert Placement.of(EngineSettings(cpu_moe=True)).overrides == ((placement.EXPERTS, "CPU"),)
    assert Placement.of(EngineSettings(cpu_moe=True)).of_draft().overrides == ()


def moved(path: Path, **settings: Any) -> list[str]:
    """Return the tensors that llama.cpp says it puts elsewhere."""
    with logged() as lines:
        model = llama.Model(path, 0, placement=Placement.of(EngineSettings(**settings)))
        model.close()
    found = (re.search(r"tensor (\S+) .* buffer type overridden to CPU", line) for line in lines)
    return [each[1] for each in found if each]


def test_llama_cpp_puts_tensors_where_they_are_wanted(mixture: Path) -> None:
    names = ("gate", "up", "down")
    some = {f"blk.{layer}.ffn_{name}_exps.weight" for layer in (0, 1) for name in names}
    assert set(moved(mixture, n_cpu_moe=2)) >= some
    assert {name.split(".")[1] for name in moved(mixture, n_cpu_moe=2)} == {"0", "1"}
    assert set(moved(mixture, override_tensor=r"blk\.(1|3)\.attn_q\.=CPU,output_norm=CPU")) >= {
        "blk.1.attn_q.weight",
        "output_norm.weight",
    }
    layers = llama.Model(mixture, 0)
    everywhere = {name.split(".")[1] for name in moved(mixture, cpu_moe=True)}
    assert everywhere == {str(layer) for layer in range(layers.n_layer)}
    layers.close()


def test_answers_do_not_depend_on_where_experts_are(mixture: Path) -> None:
    with running(mixture) as engine:
        expected = ask(engine, PROMPT, 8).tokens
    with running(mixture, cpu_moe=True, mmap=False) as engine:
        assert ask(engine, PROMPT, 8).tokens == expected


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"override_tensor": "a=CUDA9"}, "there is no device CUDA9"), ({"override_tensor": "(?<=b)lk=CPU"}, "regular expression")],
    ids=["no such device", "no pattern of C++"],
)
def test_what_cannot_be_placed_leaves_nothing_behind(path: Path, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises((ConfigError, ModelLoadError), match=reason):
        TextEngine(path, EngineSettings(context=256, threads=1, gpu_layers=0, **settings))
    assert not any(mapped.path == str(path) for mapped in psutil.Process().memory_maps())


def test_a_file_that_is_read_is_not_mapped(path: Path) -> None:
    def maps() -> bool:
        return any(mapped.path == str(path) for mapped in psutil.Process().memory_maps())

    with running(path):
        assert maps()
    with running(path, mmap=False):
        assert not maps()


def test_the_device_says_what_is_apart(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "supports_gpu", lambda: True)
    with running(mixture, gpu_layers=-1, n_cpu_moe=3, override_tensor=r"blk\.0\.=CPU") as engine:
        assert engine.info.device.endswith(r"layers, experts of 3 in RAM, blk\.0\. on CPU)")


def test_types_of_keys_and_values_apart(tmp_path: Path) -> None:
    made = tiny_gguf.write(tmp_path / "made.gguf", "lfm2")
    with logged() as lines, running(made, kv_type_k="f32", kv_type_v="bf16") as engine:
        assert len(ask(engine, PROMPT, 4).tokens) == 4
    assert any("K (f32)" in line and "V (bf16)" in line for line in lines)


@pytest.mark.parametrize("kv_type_k", get_args(KvType))
def test_every_pair_of_types_computes(tmp_path: Path, kv_type_k: str) -> None:
    shape = {"layers": 1, "width": 64, "heads": 2, "kv_heads": 1, "feed_forward": 64, "vocabulary": 300}
    made = Made(architecture="llama", type=F16, spelled=True, **shape).write(tmp_path / "made.gguf")  # type: ignore[arg-type]
    for kv_type_v in get_args(KvType):
        with running(made, kv_type_k=kv_type_k, kv_type_v=kv_type_v) as engine:
            assert len(ask(engine, PROMPT * 20, 2).tokens) == 2


def logits(path: Path, settings: EngineSettings) -> np.ndarray:
    """Return the logits behind a prompt, by way of Context."""
    model = llama.Model(path, 0)
    context = Context(model, n_ctx=256, n_batch=256, n_sequences=1, threads=1, kv_type="f16", settings=settings)
    return _logits(model, context.handle, lambda batch: context.decode(batch), context.close)


def _logits(model: llama.Model, handle: int, decode: Callable[[Batch], int], close: Callable[[], None]) -> np.ndarray:
    n = 200
    batch = Batch(n)
    batch.fill([3 + 7 * i % 200 for i in range(n)], range(n), [0] * n, [0] * (n - 1) + [1])
    assert decode(batch) == 0
    pointer = ctypes.cast(llama_cpp.llama_get_logits(handle), ctypes.POINTER(ctypes.c_float))
    found = np.ctypeslib.as_array(pointer, shape=(model.n_vocab,)).copy()
    close()
    model.close()
    return found


POSITIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({"rope_freq_base": 500.0}, {"rope_freq_base": 500.0}),
    "scale": ({"rope_scaling": "linear", "rope_scale": 4.0}, {"rope_scaling_type": 1, "rope_freq_scale": 0.25}),
    "inverse": ({"rope_scaling": "linear", "rope_freq_scale": 0.5}, {"rope_scaling_type": 1, "rope_freq_scale": 0.5}),
    "YaRN": (
        {"rope_scaling": "yarn", "rope_scale": 4.0, "yarn_orig_ctx": 64, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0},
        {"rope_scaling_type": 2, "rope_freq_scale": 0.25, "yarn_orig_ctx": 64, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0},
    ),
    "YaRN, interpolation": (
        {"rope_scaling": "yarn", "rope_scale": 4.0, "yarn_ext_factor": 0.0, "yarn_attn_factor": 1.5},
        {"rope_scaling_type": 2, "rope_freq_scale": 0.25, "yarn_ext_factor": 0.0, "yarn_attn_factor": 1.5},
    ),
}


@pytest.mark.parametrize(("settings", "fields"), POSITIONS.values(), ids=POSITIONS)
def test_positions_are_encoded_as_llama_cpp_does_with_these_parameters(
    path: Path, settings: dict[str, Any], fields: dict[str, Any]
) -> None:
    model = llama.Model(path, 0)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = 256
    params.n_threads = params.n_threads_batch = 1
    for name, value in fields.items():
        setattr(params, name, value)
    context = llama_cpp.llama_init_from_model(model.handle, params)
    expected = _logits(
        model, context, lambda batch: llama_cpp.llama_decode(context, batch.raw), lambda: llama_cpp.llama_free(context)
    )
    found, usual = logits(path, EngineSettings(**settings)), logits(path, EngineSettings())
    assert np.allclose(found, expected, atol=1e-4)
    assert not np.allclose(found, usual, atol=1e-4)


def test_threads_are_arranged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    monkeypatch.setattr(llama_cpp, "llama_numa_init", called.append)
    monkeypatch.setattr(placement, "_numa", [])
    for numa in (None, "distribute", "distribute", None):
        set_numa(numa)  # type: ignore[arg-type]
    assert called == [llama_cpp.GGML_NUMA_STRATEGY_DISTRIBUTE]
    with pytest.raises(ConfigError, match=r"^numa: this process computes with distribute already; isolate needs a new one"):
        set_numa("isolate")
