from __future__ import annotations

import dataclasses

import pytest

from locallab.fit import Gpu, Load, Machine, Wishes, approximate, choose
from locallab.fit.model_shape import Layer
from locallab.fit.spread import overfull

GIB = 1 << 30
LAYER = Layer(weights=GIB, kv=64, sliding=False, state=0, experts=GIB * 9 // 10, largest=GIB // 4)
MIXTURE = dataclasses.replace(
    approximate(10**9), layers=(LAYER,) * 40, output=1, rest=0, experts=8, experts_used=2, expert_width=64
)
"""40 layers of 1 GiB, nine tenths of it experts."""


def load(n_cpu_moe: int, gpu_layers: int = -1) -> Load:
    return Load(
        gpu_layers=gpu_layers,
        context=512,
        kv_tokens=512,
        kv_type="f16",
        parallel=1,
        kv_layout="unified",
        n_cpu_moe=n_cpu_moe,
    )


def machine(*vram: float, split: tuple[float, ...] = ()) -> Machine:
    return Machine(256 * GIB, tuple(Gpu("GPU", int(each * GIB)) for each in vram), 8, True, split=split)


@pytest.mark.parametrize(
    ("where", "n_cpu_moe", "expected"),
    [
        (machine(16, 16), 20, True),  # the second GPU has 20 whole layers, the first almost none
        (machine(16, 24), 20, False),  # of 40 layers it has 24 then, 20 of them whole
        (machine(16, 16), 28, False),
        (machine(16, 16, split=(3, 1)), 20, False),  # the first GPU has 30 layers, 10 of them whole
        (machine(16, 16, split=(1, 0)), 20, True),
        (machine(32), 20, False),
        (machine(16, 16), 0, False),
    ],
    ids=["equal GPUs", "a larger second one", "more in RAM", "shares", "all on the first", "one GPU", "nothing in RAM"],
)
def test_the_gpu_of_the_last_layers_may_be_full(where: Machine, n_cpu_moe: int, expected: bool) -> None:
    assert overfull(MIXTURE, load(n_cpu_moe), where) is expected


def test_what_is_chosen_fills_no_gpu() -> None:
    where = machine(16, 16)
    fit = choose(MIXTURE, where, Wishes(context=512))
    assert fit.fits and fit.load.gpu_layers == -1
    assert not overfull(MIXTURE, fit.load, where)
    assert overfull(MIXTURE, dataclasses.replace(fit.load, n_cpu_moe=fit.load.n_cpu_moe - 1), where)
    assert fit.load.n_cpu_moe > choose(MIXTURE, machine(32), Wishes(context=512)).load.n_cpu_moe
