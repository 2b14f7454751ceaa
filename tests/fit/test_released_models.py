"""What is chosen for released models on usual machines, and the estimates behind it beside what llama.cpp would allocate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from locallab.errors import ConfigError
from locallab.fit import Fit, Load, Machine, Shape, Wishes, check_placement, choose, estimate, estimates, shape
from locallab.fit.estimates import kv_cache_of, layers_on_gpu
from locallab.memory_model import DEFAULT_CONTEXT
from locallab.models import gguf
from tests.support.brute_force_fit import rehearsed
from tests.support.released_fits import FILE, machines, shapes, table
from tests.support.released_models import RELEASED, Delta

MACHINES = machines()
EXPERTS = ["DeepSeek-V2-Lite", "gpt-oss 20B", "Qwen3 30B-A3B", "Qwen3.5 35B-A3B", "Mixtral 8x7B", "Qwen3-Next 80B-A3B"]
EXPERTS += ["GLM-4.5-Air 106B", "gpt-oss 120B"]

TOLERANCE = 0.15
"""Of the buffers of a step, as a share of those that llama.cpp reports."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Shape]:
    return shapes(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def fits(models: Mapping[str, Shape]) -> Mapping[tuple[str, str], Fit]:
    return {(name, where): choose(model, MACHINES[where]) for name, model in models.items() for where in MACHINES}


def test_choices_are_those_of_the_table(models: Mapping[str, Shape]) -> None:
    """A change of the rules shows there: `python -m tests.support.released_fits` writes it anew."""
    expected = json.loads(FILE.read_text())
    for name, row in table(models).items():
        assert row == expected[name], name
    assert list(expected) == list(RELEASED)


def test_the_models_have_the_sizes_that_their_names_say(models: Mapping[str, Shape]) -> None:
    """Weights of 4.25 to 8.5 bits."""
    for name, model in models.items():
        billions = {"DeepSeek-V2-Lite": 15.7, "Mixtral 8x7B": 46.7}.get(name) or float(_digits(name.replace("-A3B", "")))
        assert 0.5 <= model.weights / billions / 1e9 <= 0.75, name
    assert [name for name, model in models.items() if model.has_experts] == EXPERTS


def _digits(name: str) -> str:
    return name.split()[-1].removesuffix("B")


def test_what_is_chosen_fits(fits: Mapping[tuple[str, str], Fit]) -> None:
    for (name, where), fit in fits.items():
        machine = MACHINES[where]
        assert fit.fits == machine.holds(fit.estimate.ram, fit.estimate.gpu), (name, where)
    assert fits["gpt-oss 120B", "64 GB RAM, 80 GB card"].load.gpu_layers == -1
    assert not fits["Llama 3.3 70B", "16 GB RAM, 16 GB card"].fits


def test_experts_go_to_ram_before_layers_and_layers_before_the_context(
    models: Mapping[str, Shape], fits: Mapping[tuple[str, str], Fit]
) -> None:
    split = set()
    for (name, where), fit in fits.items():
        model, machine, load = models[name], MACHINES[where], fit.load
        if not fit.fits or not machine.has_gpu:
            continue
        usual = min(model.n_ctx_train, DEFAULT_CONTEXT)
        if load.n_cpu_moe:
            assert model.has_experts
            assert not _fits(model, machine, load, n_cpu_moe=load.n_cpu_moe - 1), (name, where, "an expert more on the GPU")
            split.add("experts")
        if layers_on_gpu(model, load.gpu_layers) < len(model.layers):
            most = len(model.layers) if model.has_experts else 0
            whole = dataclasses.replace(load, context=usual, kv_tokens=usual, kv_type="q8_0", parallel=1)
            assert not _fits(model, machine, whole, gpu_layers=-1, n_cpu_moe=most), (name, where, "a layer more on the GPU")
            split.add("layers")
        if load.context < usual:
            for gpu_layers in range(len(model.layers) + 2):
                least = dataclasses.replace(load, context=usual, kv_tokens=usual, kv_type="q8_0", parallel=1, ubatch=512)
                assert not _fits(model, machine, least, gpu_layers=gpu_layers, kv_layout="unified"), (name, where)
            split.add("context")
    assert split >= {"experts", "layers"}


def _fits(model: Shape, machine: Machine, load: Load, **changes: object) -> bool:
    needs = estimate(model, dataclasses.replace(load, **changes))  # type: ignore[arg-type]
    return machine.holds(needs.ram, needs.gpu)


def test_a_context_that_nobody_names_is_the_trained_one_as_far_as_memory_allows(
    models: Mapping[str, Shape], fits: Mapping[tuple[str, str], Fit]
) -> None:
    assert fits["Qwen3 8B", "64 GB RAM, 24 GB card"].load.context == 40960
    assert fits["Llama 3.1 8B", "64 GB RAM, 80 GB card"].load.context == 131072
    assert fits["SmolLM3 3B", "64 GB RAM"].load.context == 65536
    assert DEFAULT_CONTEXT <= fits["Llama 3.1 8B", "16 GB RAM"].load.context < 131072
    named = choose(models["Llama 3.1 8B"], MACHINES["64 GB RAM, 80 GB card"], Wishes(usual_context=4096))
    assert named.load.context == 4096


def test_experts_in_ram_beat_whole_layers_there(models: Mapping[str, Shape], fits: Mapping[tuple[str, str], Fit]) -> None:
    """Else the order of concessions would be wrong."""
    for name in ("Qwen3 30B-A3B", "gpt-oss 120B", "GLM-4.5-Air 106B"):
        where = "64 GB RAM, 16 GB card"
        fit = fits[name, where]
        assert fit.fits and fit.load.n_cpu_moe
        for gpu_layers in range(len(models[name].layers)):
            other = choose(models[name], MACHINES[where], Wishes(gpu_layers=gpu_layers, n_cpu_moe=0, context=fit.load.context))
            assert not other.fits or other.speed.tokens_per_second < fit.speed.tokens_per_second, (name, gpu_layers)


LOADS = {
    "pool": Load(gpu_layers=0, context=16384, kv_tokens=32768, kv_type="f16", parallel=4, kv_layout="unified"),
    "streams": Load(gpu_layers=0, context=8192, kv_tokens=32768, kv_type="q8_0", parallel=4, kv_layout="streams"),
    "one": Load(gpu_layers=0, context=4096, kv_tokens=4096, kv_type="f16", parallel=1, kv_layout="unified"),
    "types apart": Load(
        gpu_layers=0, context=8192, kv_tokens=8192, kv_type="f16", kv_type_k="q8_0", parallel=2, kv_layout="streams"
    ),
}


REFUSED = {("Phi-4 14B", ("q8_0", "q8_0")), ("Phi-4 14B", ("q8_0", "f16")), ("DeepSeek-V2-Lite", ("q8_0", "f16"))}


@pytest.fixture(scope="module", params=RELEASED)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    made = RELEASED[request.param]
    if isinstance(made, Delta):  # llama.cpp allocates the states of recurrent layers even then
        made = dataclasses.replace(made, layers=8)
    return request.param, made.write(tmp_path_factory.mktemp("released") / "model.gguf")


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_buffers_are_as_large_as_llama_cpp_makes_them(file: tuple[str, Path], load: Load) -> None:
    name, path = file
    header = gguf.read(path)
    model = shape(header)
    try:
        check_placement(dict(zip(("kv_type_k", "kv_type_v"), load.kv_types, strict=True)), header, ("CPU",), ())
    except ConfigError:
        assert (name, load.kv_types) in REFUSED, "llama.cpp would refuse it, or end the process"
        return
    assert (name, load.kv_types) not in REFUSED
    needs = estimate(model, load)
    cache = kv_cache_of(model, load)
    real = rehearsed(path, load, cache)
    assert needs.kv + needs.state == pytest.approx(real["memory"], rel=0.001)
    logits = real["logits"] * cache.outputs / cache.sequences
    found, expected = needs.compute - estimates.vocabulary(model), real["compute"] + logits
    print(f"{name}: {found / 2**20:.0f} MiB estimated, {expected / 2**20:.0f} MiB allocated: {found / expected - 1:+.0%}")
    assert found == pytest.approx(expected, rel=TOLERANCE)
    assert model.weights == pytest.approx(real["weights"], rel=0.001)
