from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.fit import Fit, Gpu, Machine, Shape, Wishes, approximate, choose, estimate, shape
from locallab.fit.choice import LEAST
from locallab.fit.estimates import kv_cache_of
from locallab.fit.model_shape import Layer
from locallab.fit.spread import overfull
from locallab.memory_model import DEFAULT_CONTEXT
from locallab.models import gguf
from locallab.settings import EngineSettings, KvLayout, resolve
from tests.support import tiny_gguf

GIB = 1 << 30
SEVEN = approximate(4_700_000_000, DEFAULT_CONTEXT)
"""A model of 7 or 8 billion weights; its KV cache takes 128 KiB a token."""

MIXTURE = dataclasses.replace(
    SEVEN,
    layers=tuple(
        dataclasses.replace(each, experts=each.weights * 9 // 10, largest=each.weights * 3 // 10) for each in SEVEN.layers
    ),
    experts=32,
    experts_used=4,
    expert_width=256,
)
"""As large, but nine tenths of its layers are experts, of which a token uses one in eight."""

HYBRID = dataclasses.replace(
    SEVEN, layers=(Layer(SEVEN.layers[0].weights, 0, False, 400_000),) * 30 + SEVEN.layers[:2], inner=4096
)
"""As large, but most of its layers keep a state for each sequence."""


def machine(ram: float, *vram: float, build: bool = True) -> Machine:
    """So many GiB of RAM and of each GPU's memory."""
    return Machine(int(ram * GIB), tuple(Gpu("GPU", int(each * GIB)) for each in vram), 8, build)


def summary(fit: Fit) -> tuple[int, int, str, int]:
    return fit.load.gpu_layers, fit.load.context, fit.load.kv_type, fit.load.parallel


CASES = {
    "ample RAM": (machine(64), (0, DEFAULT_CONTEXT, "f16", 64)),
    "ample GPU": (machine(64, 24), (-1, DEFAULT_CONTEXT, "f16", 64)),
    "a smaller pool": (machine(64, 6.5), (-1, DEFAULT_CONTEXT, "f16", 64)),
    "a compressed cache": (machine(64, 5.9), (-1, DEFAULT_CONTEXT, "q8_0", 64)),
    "layers before the context": (machine(64, 5.4), (31, DEFAULT_CONTEXT, "q8_0", 64)),
    "a part of the layers": (machine(64, 4.5), (25, DEFAULT_CONTEXT, "q8_0", 64)),
    "a GPU too small to help": (machine(64, 1), (0, DEFAULT_CONTEXT, "f16", 64)),
    "two GPUs": (machine(64, 5, 5), (-1, DEFAULT_CONTEXT, "f16", 64)),
    "no CUDA": (machine(64, 24, build=False), (0, DEFAULT_CONTEXT, "f16", 64)),
    "little RAM": (machine(6.1), (0, DEFAULT_CONTEXT, "q8_0", 64)),
    "less RAM": (machine(5.5), (0, 4096, "q8_0", 64)),
    "the least": (machine(5.15), (0, LEAST, "q8_0", 16)),
    "shared memory": (Machine(16 * GIB, (Gpu("Orin", None),), 8, True), (-1, DEFAULT_CONTEXT, "f16", 64)),
}


@pytest.mark.parametrize(("where", "expected"), CASES.values(), ids=CASES)
def test_what_suits_a_machine(where: Machine, expected: tuple[int, int, str, int]) -> None:
    fit = choose(SEVEN, where)
    print(fit.reason)
    assert fit.fits
    assert summary(fit) == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (machine(64), ("streams", 8)),
        (machine(30), ("unified", 5)),
        (machine(10), ("unified", 2)),
        (machine(7), ("unified", 1)),
        (machine(64, 6.5), ("unified", 1)),
        (machine(64, 24), ("unified", 14)),
        (machine(64, 32), ("streams", 20)),
        (machine(256, 128), ("streams", 64)),
        (machine(64, 4.5), ("unified", 1)),
        (Machine(64 * GIB, (Gpu("Orin", None),), 8, True), ("unified", 8)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_whole_contexts_in_the_kv_cache(where: Machine, expected: tuple[str, int]) -> None:
    """On a CPU 2 to 8, as a quarter of what the weights leave holds; on a GPU of its own memory as 80% of that holds, up to one
    for each request."""
    load = choose(SEVEN, where).load
    assert (load.kv_layout, load.kv_tokens / load.context) == expected


def test_no_more_contexts_than_requests() -> None:
    for where in (machine(64), machine(256, 128)):
        assert choose(SEVEN, where, Wishes(parallel=3)).load.kv_tokens == 3 * DEFAULT_CONTEXT


@pytest.mark.parametrize("layout", ["streams", "unified"])
@pytest.mark.parametrize("where", [machine(64), machine(7), machine(64, 24)], ids=["ample", "little", "GPU"])
def test_a_fixed_layout_is_kept(where: Machine, layout: KvLayout) -> None:
    fit = choose(SEVEN, where, Wishes(kv_layout=layout))
    assert fit.fits
    assert fit.load.kv_layout == layout


def test_states_of_many_sequences_make_it_fewer_requests() -> None:
    found = [choose(HYBRID, machine(ram)).load for ram in (64, 5.5)]
    assert [kv_cache_of(HYBRID, load).parallel for load in found] == [8, 1]
    pooled = [choose(HYBRID, machine(ram), Wishes(kv_layout="unified")).load.parallel for ram in (64, 11, 6)]
    assert pooled == [64, 16, 4]


def test_what_fits_nowhere() -> None:
    fit = choose(SEVEN, machine(4, 2))
    assert not fit.fits
    assert summary(fit) == (0, LEAST, "q8_0", 1)
    assert fit.reason.startswith("does not fit: even on the CPU, context 512, KV q8_0, one request at a time would take 4.")


def test_reasons() -> None:
    """One line each: what is done, what it takes, what can be used, and what was wanted but is too much."""
    assert choose(SEVEN, machine(64)).reason == (
        "on the CPU, context 8,192, KV f16 in 8 streams, 8 requests at once: takes 12.6 GiB of RAM; 57.6 GiB of RAM can be used"
        "; about 8.5 tokens/s for one request, by memory bandwidth"
    )
    assert choose(SEVEN, machine(64, 5.4)).reason == (
        "31 of 33 layers on the GPU, context 8,192, KV q8_0 in one pool, 64 requests at once: takes 4.8 GiB of GPU memory and"
        " 1.1 GiB of RAM; 4.9 GiB of GPU memory and 57.6 GiB of RAM can be used; all 33 layers on the GPU, KV f16 in one pool"
        " would take 5.5 GiB of GPU memory and 727 MiB of RAM; about 36 tokens/s for one request, by memory bandwidth"
    )
    assert "; all 33 layers on the GPU, KV f16 in one pool would take 5.5 GiB" in choose(SEVEN, machine(64, 4.5)).reason
    alone = choose(SEVEN, machine(7), Wishes(kv_layout="streams"))
    assert "KV f16 in one stream, one request at a time: takes" in alone.reason
    pooled = choose(SEVEN, machine(7), Wishes(kv_layout="unified"))
    assert "; a KV pool of 16,384 tokens would take" in pooled.reason
    assert choose(SEVEN, machine(64, 24, build=False)).reason.endswith(
        "; the GPU is not used, because this llama.cpp was built without CUDA"
    )


def test_the_host_cache_gets_what_is_left() -> None:
    assert choose(SEVEN, machine(64)).cache_ram_mib == 512
    tight = choose(SEVEN, machine(5.15))
    assert 0 <= tight.cache_ram_mib < 512
    assert machine(5.15).holds(tight.estimate.ram + (tight.cache_ram_mib << 20), 0)


def test_a_fixed_host_cache_is_kept_free() -> None:
    fit = choose(SEVEN, machine(64), Wishes(cache_ram_mib=40_000))
    assert (fit.fits, fit.cache_ram_mib) == (True, 40_000)
    assert not choose(SEVEN, machine(64), Wishes(cache_ram_mib=60_000)).fits


def test_a_usual_context_is_wanted_and_a_fixed_one_kept() -> None:
    assert choose(SEVEN, machine(64), Wishes(usual_context=20_000)).load.context == 20_000
    assert choose(SEVEN, machine(6.1), Wishes(usual_context=20_000)).load.context < 20_000
    fixed = choose(SEVEN, machine(6.1), Wishes(context=20_000))
    assert (fixed.fits, fixed.load.context) == (False, 20_000)


def test_the_layer_is_all_that_was_chosen() -> None:
    fit = choose(SEVEN, machine(64, 6.5))
    assert fit.layer == {
        "gpu_layers": -1,
        "context": 8192,
        "kv_tokens": 8192,
        "kv_type": "f16",
        "kv_layout": "unified",
        "parallel": 64,
        "ubatch": 512,
        "n_cpu_moe": None,
        "cache_ram_mib": 512,
    }
    assert resolve(EngineSettings, ("fit", fit.layer)).kv_tokens == 8192


@pytest.mark.parametrize(
    ("where", "wanted", "expected"),
    [
        pytest.param(machine(64), Wishes(), 512, id="a CPU"),
        pytest.param(machine(64, 24), Wishes(), 2048, id="a GPU"),
        pytest.param(machine(64, 8), Wishes(), 1024, id="a GPU with less left after the weights"),
        pytest.param(machine(64, 6.5), Wishes(), 512, id="a GPU with little left"),
        pytest.param(machine(64, 4.5), Wishes(), 512, id="a GPU that would lose a layer"),
        pytest.param(machine(64, 12, 12), Wishes(), 512, id="two GPUs"),
        pytest.param(machine(64, 24), Wishes(batch=1500), 1500, id="shorter steps"),
        pytest.param(machine(64, 24), Wishes(gpu_layers=0), 512, id="a GPU that is not to be used"),
        pytest.param(machine(64, 24), Wishes(gpu_layers=20, batch=4096), 4096, id="weights that cross the bus"),
        pytest.param(machine(64, 24), Wishes(ubatch=256), 256, id="what is configured"),
        pytest.param(machine(64), Wishes(ubatch=4096), 2048, id="no more than a step"),
    ],
)
def test_tokens_in_one_go(where: Machine, wanted: Wishes, expected: int) -> None:
    """Their buffers take no more than a tenth of the GPU memory that the weights leave, and are part of the estimate."""
    fit = choose(SEVEN, where, wanted)
    assert fit.fits and fit.load.ubatch == expected
    less = dataclasses.replace(fit.load, ubatch=64)
    assert estimate(SEVEN, less, len(where.gpus) or 1).compute < fit.estimate.compute


def test_a_window_keeps_no_room_for_more_tokens_in_one_go() -> None:
    layers = tuple(dataclasses.replace(layer, sliding=index % 6 != 5) for index, layer in enumerate(SEVEN.layers))
    windowed = dataclasses.replace(SEVEN, layers=layers, window=512)
    fit = choose(windowed, machine(64, 24))
    assert (fit.load.ubatch, fit.load.kv_layout) == (512, "streams")
    more = choose(windowed, machine(64, 24), Wishes(ubatch=2048))
    assert more.fits and more.load.ubatch == 2048
    assert 16 <= more.load.kv_tokens // 8192 < fit.load.kv_tokens // 8192


def test_a_layer_for_a_file(tmp_path: Path) -> None:
    header = gguf.read(tiny_gguf.write(tmp_path / "tiny.gguf", "llama"))
    found = choose(shape(header), machine(4), Wishes.of({"parallel": 3, "batch": 64, "threads": 2})).layer
    assert (found["context"], found["parallel"]) == (tiny_gguf.CONTEXT, 3)
    assert choose(shape(header), machine(4), Wishes.of({}, usual_context=256)).layer["context"] == 256


amounts = st.floats(0, 40)
machines = st.builds(
    lambda ram, vram, build, share: Machine(
        int(ram * GIB), tuple(Gpu("GPU", None if share else int(each * GIB)) for each in vram), 4, build
    ),
    amounts,
    st.lists(amounts, max_size=3),
    st.booleans(),
    st.booleans(),
)
wishes = st.builds(
    Wishes,
    context=st.none() | st.integers(1, 100_000),
    kv_tokens=st.none() | st.integers(1, 100_000),
    kv_type=st.none() | st.sampled_from(["f16", "q4_0"]),
    kv_layout=st.none() | st.sampled_from(["auto", "streams", "unified"]),
    gpu_layers=st.none() | st.integers(-1, 40),
    cpu_moe=st.booleans(),
    n_cpu_moe=st.none() | st.integers(0, 40),
    kv_type_v=st.none() | st.sampled_from(["f16", "q8_0"]),
    parallel=st.none() | st.integers(1, 192),
    ubatch=st.none() | st.integers(32, 8192),
    usual_context=st.none() | st.integers(1, 100_000),
    cache_ram_mib=st.none() | st.integers(0, 2000),
)
shapes = st.sampled_from([SEVEN, HYBRID, MIXTURE, approximate(100_000_000), approximate(40_000_000_000)])


@given(shapes, machines, wishes)
def test_what_is_chosen_fits_and_keeps_what_is_fixed(shape: Shape, where: Machine, wanted: Wishes) -> None:
    fit = choose(shape, where, wanted)
    load = fit.load
    holds = where.holds(fit.estimate.ram + ((wanted.cache_ram_mib or 0) << 20), fit.estimate.gpu)
    assert fit.fits == (holds and not overfull(shape, load, where))
    assert fit.estimate == estimate(shape, load, max(1, len(where.gpus)))
    assert wanted.kv_type in (None, load.kv_type)
    assert wanted.kv_type_v in (None, load.kv_types[1])
    assert not wanted.cpu_moe or load.n_cpu_moe == len(shape.layers)
    assert wanted.cpu_moe or wanted.n_cpu_moe in (None, load.n_cpu_moe)
    assert wanted.parallel in (None, load.parallel)
    assert wanted.kv_layout in (None, "auto", load.kv_layout)
    assert load.ubatch == min(wanted.ubatch, load.batch) if wanted.ubatch else load.ubatch <= load.batch
    assert wanted.context is None or load.context == min(wanted.context, load.kv_tokens)
    assert wanted.kv_tokens is None or load.kv_tokens == -(-wanted.kv_tokens // 256) * 256
    assert load.gpu_layers == 0 if not where.has_gpu else wanted.gpu_layers in (None, load.gpu_layers)
    assert load.kv_tokens >= load.context >= 1
    resolve(EngineSettings, ("fit", fit.layer))  # only values that settings take
    assert "\n" not in fit.reason


@given(shapes, machines, wishes, amounts)
def test_more_memory_is_never_worse(shape: Shape, where: Machine, wanted: Wishes, more: float) -> None:
    larger = dataclasses.replace(where, ram=where.ram + int(more * GIB))
    assert not choose(shape, where, wanted).fits or choose(shape, larger, wanted).fits


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        pytest.param(machine(64, 24), (-1, 0), id="an ample GPU"),
        pytest.param(machine(64, 4.5), (-1, 14), id="some experts in RAM"),
        pytest.param(machine(64, 2.5), (-1, 32), id="all experts in RAM"),
        pytest.param(machine(3.5, 4.5), (-1, 14), id="what fits in both together"),
        pytest.param(machine(64), (0, 0), id="no GPU"),
        pytest.param(Machine(16 * GIB, (Gpu("Orin", None),), 8, True), (-1, 0), id="one memory for both"),
    ],
)
def test_experts_go_to_ram_as_far_as_necessary(where: Machine, expected: tuple[int, int]) -> None:
    fit = choose(MIXTURE, where)
    print(fit.reason)
    assert fit.fits
    assert (fit.load.gpu_layers, fit.load.n_cpu_moe) == expected
    assert fit.layer["n_cpu_moe"] == (expected[1] or None)
    if expected[1]:
        assert f"all 33 layers on the GPU, the experts of {expected[1]} in RAM, context" in fit.reason
        assert fit.speed.tokens_per_second > choose(SEVEN, where).speed.tokens_per_second


def test_with_all_experts_in_ram_layers_follow() -> None:
    fit = choose(MIXTURE, machine(64, 1.6))
    assert fit.fits and 8 < fit.load.gpu_layers <= 32
    assert fit.load.n_cpu_moe == len(MIXTURE.layers)


@pytest.mark.parametrize("wanted", [Wishes(cpu_moe=True), Wishes(n_cpu_moe=32)], ids=["all", "as many"])
def test_experts_that_are_to_be_in_ram_leave_the_gpu_to_the_cache(wanted: Wishes) -> None:
    fit, free = choose(MIXTURE, machine(64, 8), wanted), choose(MIXTURE, machine(64, 8))
    assert (fit.load.n_cpu_moe, free.load.n_cpu_moe) == (32, 0)
    assert fit.estimate.gpu_weights < free.estimate.gpu_weights / 2
    assert fit.estimate.kv > free.estimate.kv


def test_a_context_that_nobody_names() -> None:
    """The trained one where it fits, less where it does not, and never one for which the cache is compressed."""
    long = dataclasses.replace(SEVEN, n_ctx_train=131072)
    assert choose(long, machine(256, 80)).load.context == 131072
    assert [choose(long, machine(64, vram)).load.context for vram in (24, 16, 10)] == [131072, 65536, 32768]
    for where in (machine(64, 24), machine(64, 10), machine(64), machine(24)):
        load = choose(long, where).load
        assert load.context == DEFAULT_CONTEXT or load.kv_type == "f16"
    on_cpu = choose(long, machine(32))
    left = machine(32).usable_ram - long.weights
    assert on_cpu.load.context > DEFAULT_CONTEXT and on_cpu.estimate.kv <= 0.25 * left
    assert choose(long, machine(64, 24), Wishes(context=4096)).load.context == 4096


def test_an_embedding_model_keeps_the_default_context() -> None:
    """Its memory grows with the square of the context."""
    embedding = dataclasses.replace(SEVEN, embeds=True, whole=True)
    fit = choose(embedding, machine(64))
    assert fit.load.context == DEFAULT_CONTEXT
    assert "tokens/s" not in fit.reason


def test_types_of_keys_and_values_apart() -> None:
    both, keys, values = (
        choose(SEVEN, machine(64), Wishes(context=8192, parallel=1, **types))  # type: ignore[arg-type]
        for types in ({"kv_type": "q8_0"}, {"kv_type_k": "q8_0"}, {"kv_type_v": "q8_0"})
    )
    alone = choose(SEVEN, machine(64), Wishes(context=8192, parallel=1))
    assert both.estimate.kv < keys.estimate.kv == values.estimate.kv < alone.estimate.kv
    assert keys.load.kv_types == ("q8_0", "f16") and "KV q8_0/f16, one request" in keys.reason
