"""The estimates beside what llama.cpp takes: a table of known models that are rehearsed, and some that are really loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from locallab.fit import Load, Shape, estimate, estimates, shape
from locallab.fit.estimates import kv_cache_of
from locallab.models import gguf
from locallab.settings import EngineSettings, Layout
from tests.support.brute_force_fit import measured, rehearsed
from tests.support.gguf_headers import F16, Made

# States are allocated even when nothing else is, so those that keep some have few layers.
KNOWN = {
    "SmolLM2 135M": Made(architecture="llama", layers=30, width=576, heads=9, kv_heads=3, feed_forward=1536, vocabulary=49152),
    "Llama 3.2 1B": Made(
        architecture="llama", layers=16, width=2048, heads=32, kv_heads=8, feed_forward=8192, vocabulary=128256
    ),
    "Llama 3.1 8B": Made(
        architecture="llama", layers=32, width=4096, heads=32, kv_heads=8, feed_forward=14336, vocabulary=128256, tied=False
    ),
    "Qwen2.5 0.5B": Made(
        architecture="qwen2", layers=24, width=896, heads=14, kv_heads=2, feed_forward=4864, vocabulary=151936
    ),
    "Qwen2.5 7B": Made(
        architecture="qwen2", layers=28, width=3584, heads=28, kv_heads=4, feed_forward=18944, vocabulary=152064, tied=False
    ),
    "Qwen3 4B": Made(
        architecture="qwen3", layers=36, width=2560, heads=32, kv_heads=8, head=128, feed_forward=9728, vocabulary=151936
    ),
    "Qwen3 30B-A3B": Made(
        architecture="qwen3moe",
        layers=48,
        width=2048,
        heads=32,
        kv_heads=4,
        head=128,
        feed_forward=6144,
        experts=(128, 8, 768),
        vocabulary=151936,
        tied=False,
    ),
    "Gemma 2 2B": Made(
        architecture="gemma2",
        layers=26,
        width=2304,
        heads=8,
        kv_heads=4,
        head=256,
        feed_forward=9216,
        vocabulary=256000,
        window=4096,
    ),
    "Gemma 3 4B": Made(
        architecture="gemma3",
        layers=34,
        width=2560,
        heads=8,
        kv_heads=4,
        head=256,
        feed_forward=10240,
        vocabulary=262144,
        window=1024,
    ),
    "LFM2 1.2B": Made(
        architecture="lfm2",
        layers=16,
        width=2048,
        heads=32,
        kv_heads=8,
        feed_forward=8192,
        attention=frozenset({2, 5, 8, 10, 12, 14}),
        taps=3,
        vocabulary=65536,
    ),
    "LFM2 350M, windows": Made(
        architecture="lfm2",
        layers=16,
        width=1024,
        heads=16,
        kv_heads=8,
        feed_forward=4608,
        attention=frozenset({2, 5, 8, 10, 12, 14}),
        taps=3,
        window=512,
        vocabulary=65536,
    ),
    "Mamba 2.8B, 4 layers": Made(architecture="mamba", layers=4, width=2560, state=(16, 160, 0), vocabulary=50280),
    "Mamba2 1.3B, 2 layers": Made(architecture="mamba2", layers=2, width=2048, state=(128, 64, 1), vocabulary=50288),
    "Granite 4 Micro, 4 layers": Made(
        architecture="granitehybrid",
        layers=4,
        width=2048,
        heads=32,
        kv_heads=8,
        feed_forward=8192,
        attention=frozenset({1}),
        state=(128, 64, 1),
        vocabulary=100352,
    ),
}
LOADS = {
    "wide": Load(gpu_layers=0, context=16384, kv_tokens=32768, kv_type="f16", parallel=64, kv_layout="unified"),
    "usual": Load(gpu_layers=0, context=8192, kv_tokens=8192, kv_type="q8_0", parallel=16, kv_layout="unified"),
    "narrow": Load(gpu_layers=0, context=4096, kv_tokens=4096, kv_type="f16", parallel=1, kv_layout="unified"),
    "small": Load(gpu_layers=0, context=2048, kv_tokens=2048, kv_type="q4_0", parallel=4, kv_layout="unified", batch=256),
    "streams": Load(gpu_layers=0, context=8192, kv_tokens=65536, kv_type="f16", parallel=64, kv_layout="streams"),
    "few streams": Load(gpu_layers=0, context=4096, kv_tokens=9000, kv_type="q8_0", parallel=4, kv_layout="streams"),
    "long goes": Load(
        gpu_layers=0, context=8192, kv_tokens=16384, kv_type="f16", parallel=2, kv_layout="streams", batch=4096, ubatch=2048
    ),
    "short streams": Load(gpu_layers=0, context=300, kv_tokens=4096, kv_type="f16", parallel=64, kv_layout="streams"),
}


@pytest.fixture(scope="module", params=KNOWN)
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KNOWN[request.param].write(tmp_path_factory.mktemp("known") / "model.gguf")


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_buffers_are_as_large_as_llama_cpp_makes_them(known: Path, load: Load) -> None:
    model = shape(gguf.read(known))
    needs = estimate(model, load)
    cache = kv_cache_of(model, load)
    real = rehearsed(known, load, cache)
    assert needs.kv + needs.state == pytest.approx(real["memory"], rel=0.001)
    logits = real["logits"] * cache.outputs / cache.sequences  # llama.cpp makes room for more outputs when there are more
    assert needs.compute - estimates.vocabulary(model) == pytest.approx(real["compute"] + logits, rel=0.1)


REAL = {
    "attention": Made(
        architecture="llama",
        layers=6,
        width=1024,
        heads=16,
        kv_heads=4,
        feed_forward=2816,
        vocabulary=32000,
        tied=False,
        type=F16,
        spelled=True,
    ),
    "windows": Made(
        architecture="gemma3",
        layers=12,
        width=640,
        heads=4,
        kv_heads=2,
        head=256,
        feed_forward=2048,
        vocabulary=64000,
        window=64,
        type=F16,
        spelled=True,
    ),
    "hybrid": Made(
        architecture="lfm2",
        layers=8,
        width=1024,
        heads=16,
        kv_heads=8,
        feed_forward=4608,
        attention=frozenset({2, 5, 6}),
        taps=3,
        vocabulary=65536,
        type=F16,
        spelled=True,
    ),
    "states": Made(architecture="mamba", layers=16, width=768, state=(16, 48, 0), vocabulary=50280, type=F16, spelled=True),
}


@pytest.mark.parametrize(
    ("name", "layout", "values"),
    [
        ("attention", "unified", {"context": 8192, "kv_tokens": 16384, "parallel": 8}),
        ("attention", "streams", {"context": 2048, "kv_tokens": 16384, "parallel": 8}),
        ("windows", "unified", {"context": 8192, "kv_tokens": 16384, "kv_type": "q8_0", "parallel": 4}),
        ("windows", "streams", {"context": 8192, "kv_tokens": 32768, "parallel": 4}),
        ("hybrid", "unified", {"context": 4096, "kv_tokens": 16384, "parallel": 8}),
        ("states", "unified", {"context": 4096, "kv_tokens": 16384, "parallel": 32}),
        ("states", "streams", {"context": 4096, "kv_tokens": 65536, "parallel": 32}),
    ],
)
def test_a_process_takes_what_was_estimated(tmp_path: Path, name: str, layout: Layout, values: dict[str, object]) -> None:
    compare(REAL[name].write(tmp_path / "model.gguf"), layout, values)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_the_embedded_model_takes_what_was_estimated(model_path: Path, kv_type: str) -> None:
    compare(model_path, "unified", {"context": 8192, "kv_tokens": 16384, "kv_type": kv_type, "parallel": 8})


@pytest.mark.parametrize("layout", ["unified", "streams"])
def test_a_real_model_with_windows_takes_what_was_estimated(gemma: Path, layout: Layout) -> None:
    compare(gemma, layout, {"context": 4096, "kv_tokens": 32768, "parallel": 8})


def compare(path: Path, layout: Layout, values: dict[str, object]) -> None:
    settings = EngineSettings(**values, kv_layout=layout, gpu_layers=0, cache_ram_mib=0)  # type: ignore[arg-type]
    load = Load(
        gpu_layers=0,
        context=settings.context or 0,
        kv_tokens=settings.kv_tokens or 0,
        kv_type=settings.kv_type,
        parallel=settings.parallel,
        kv_layout=layout,
    )
    needs = estimate(shape(gguf.read(path)), load)
    real = measured(path, settings)
    print(f"{path.name}: {needs.ram / 2**20:.0f} MiB estimated, {real / 2**20:.0f} MiB measured")
    assert needs.ram == pytest.approx(real, rel=0.1)


@pytest.fixture
def model(tmp_path: Path) -> Shape:
    return shape(gguf.read(KNOWN["Llama 3.2 1B"].write(tmp_path / "model.gguf")))


def load(gpu_layers: int) -> Load:
    return Load(gpu_layers=gpu_layers, context=8192, kv_tokens=16384, kv_type="f16", parallel=16, kv_layout="unified")


def test_what_is_on_the_gpu(model: Shape) -> None:
    """llama.cpp puts the output there first, then the last layers; the embeddings stay in RAM."""
    cpu, output, some, full = (estimate(model, load(n)) for n in (0, 1, 9, -1))
    assert (cpu.gpu, cpu.ram) == (0, cpu.total)
    assert output.kv == cpu.kv
    assert output.gpu < some.gpu < full.gpu
    assert some.ram < output.ram
    assert full.ram < some.ram
    assert full.gpu > sum(layer.weights for layer in model.layers) + model.output + full.kv
    assert full.weights == model.weights + model.output  # tied: one copy here, one there
    assert estimate(model, load(17)) == estimate(model, load(99)) == full
    assert estimates.layers_on_gpu(model, 9) == 8


def test_totals(model: Shape) -> None:
    for gpu_layers in (0, 5, -1):
        needs = estimate(model, load(gpu_layers))
        assert needs.total == needs.weights + needs.kv + needs.state + needs.compute == needs.gpu + needs.ram
