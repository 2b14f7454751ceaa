from __future__ import annotations

import dataclasses

import pytest

from locallab.fit import Gpu, Load, Machine, Shape, approximate, expected
from locallab.fit.bandwidth import OTHER_GPU, REACHED, USUAL_RAM
from locallab.fit.model_shape import Bytes, Layer

GB = 10**9
DENSE = approximate(5 * GB)
LAYER = Layer(weights=1100, kv=8, sliding=False, state=0, experts=1000, largest=300)
MIXTURE = dataclasses.replace(DENSE, layers=(LAYER,) * 10, output=500, experts=8, experts_used=2)
"""Of each layer a token reads 100 bytes and a quarter of 1,000."""


def load(gpu_layers: int, n_cpu_moe: int = 0) -> Load:
    return Load(
        gpu_layers=gpu_layers,
        context=512,
        kv_tokens=512,
        kv_type="f16",
        parallel=1,
        kv_layout="unified",
        n_cpu_moe=n_cpu_moe,
    )


def machine(*names: str, ram_bandwidth: int | None = 20 * GB) -> Machine:
    return Machine(64 << 30, tuple(Gpu(name, 24 << 30) for name in names), 8, bool(names), ram_bandwidth)


@pytest.mark.parametrize(
    ("shape", "how", "gpu", "ram"),
    [
        (MIXTURE, load(0), 0, 10 * 350 + 500),
        (MIXTURE, load(-1), 10 * 350 + 500, 0),
        (MIXTURE, load(-1, 10), 10 * 100 + 500, 10 * 250),
        (MIXTURE, load(-1, 4), 10 * 350 - 4 * 250 + 500, 4 * 250),
        (MIXTURE, load(6), 5 * 350 + 500, 5 * 350),
        (MIXTURE, load(6, 7), 5 * 350 - 2 * 250 + 500, 5 * 350 + 2 * 250),
    ],
    ids=["CPU", "GPU", "experts in RAM", "some experts in RAM", "some layers", "both"],
)
def test_a_token_reads_its_active_weights_where_they_are(shape: Shape, how: Load, gpu: int, ram: int) -> None:
    found = expected(shape, how, machine("Tesla T4"))
    assert (found.gpu_bytes, found.ram_bytes) == (gpu, ram)
    assert found.tokens_per_second == pytest.approx(1 / (gpu / (REACHED * 320 * GB) + ram / (20 * GB)))


def test_what_is_put_elsewhere_is_read_there() -> None:
    """Experts of which a token uses few count as such there too."""
    moved = dataclasses.replace(LAYER, ram=Bytes(0, 1000))
    back = dataclasses.replace(LAYER, gpu=Bytes(100, 0))
    assert expected(dataclasses.replace(MIXTURE, layers=(moved,)), load(-1), machine("T4")).ram_bytes == 250
    assert expected(dataclasses.replace(MIXTURE, layers=(back,)), load(0), machine("T4")).gpu_bytes == 100


def test_what_is_not_known_is_assumed_and_said() -> None:
    half = load(18)
    found = expected(DENSE, half, machine("Magic 9000", ram_bandwidth=None))
    assert (found.gpu_bandwidth, found.ram_bandwidth) == (OTHER_GPU, USUAL_RAM)
    assert found.described == "300 GB/s of the GPU (assumed) and 40 GB/s of the RAM (assumed)"
    known = expected(DENSE, half, machine("NVIDIA GeForce RTX 3090", "Tesla T4"))
    assert known.described == "320 GB/s of the GPU (as its maker states) and 20 GB/s of the RAM (measured)"
    assert expected(DENSE, load(0), machine()).described == "20 GB/s of the RAM (measured)"
    few = dataclasses.replace(machine(), threads=2)
    assert expected(DENSE, load(0), few).described == "12 GB/s that 2 CPU threads compute with"
    shared = Machine(64 << 30, (Gpu("GPU", None),), 8, True, 90 * GB)
    assert expected(DENSE, load(-1), shared).gpu_bandwidth == 90 * GB
