from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab import hardware
from locallab.fit import Gpu, Machine

GIB = 1 << 30


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Any]] = [
        {"name": "T4", "free_bytes": 7, "total_bytes": 9},
        {"name": None, "free_bytes": None, "total_bytes": None},
    ]
    monkeypatch.setattr(hardware, "gpus", lambda: found)
    monkeypatch.setattr(hardware, "available_memory", lambda: 5)
    monkeypatch.setattr(hardware, "threads", lambda: 3)
    assert Machine.here(gpu_build=True) == Machine(5, (Gpu("T4", 7), Gpu("GPU", None)), 3, True)
    assert Machine.here(True, ram=6, vram=2).ram == 6
    assert [Machine.here(True, vram=vram).gpus[0].free for vram in (2, 4, 8)] == [8, 9, 9]


def test_a_gpu_of_another_maker_counts_as_sharing_the_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", list)
    assert Machine.here(gpu_build=True).shared
    assert not Machine.here(gpu_build=False).gpus


def test_some_memory_is_left_alone() -> None:
    assert Machine(1 * GIB).usable_ram == GIB - (256 << 20)
    assert Machine(100 * GIB).usable_ram == 90 * GIB
    assert Machine(100).usable_ram == 0
    one = Machine(GIB, (Gpu("a", 4 * GIB),), gpu_build=True)
    assert one.usable_vram == 4 * GIB - (512 << 20)
    two = Machine(GIB, (Gpu("a", 100 * GIB), Gpu("b", 100)), gpu_build=True)
    assert two.usable_vram == 95 * GIB


def test_a_gpu_without_a_build_for_it_counts_for_nothing() -> None:
    machine = Machine(4 * GIB, (Gpu("a", 4 * GIB),), gpu_build=False)
    assert not machine.has_gpu
    assert machine.usable_vram == 0
    assert not Machine(4 * GIB, (), gpu_build=True).has_gpu


def test_what_holds() -> None:
    machine = Machine(10 * GIB, (Gpu("a", 10 * GIB),), gpu_build=True)
    assert machine.holds(9 * GIB, machine.usable_vram)
    assert not machine.holds(9 * GIB + 1, 0)
    assert not machine.holds(0, machine.usable_vram + 1)


def test_a_gpu_that_shares_the_ram() -> None:
    machine = Machine(10 * GIB, (Gpu("a", None),), gpu_build=True)
    assert machine.has_gpu
    assert machine.holds(4 * GIB, 5 * GIB)
    assert not machine.holds(5 * GIB, 5 * GIB)


@given(st.integers(1, 100 * GIB), st.integers(0, 100 * GIB), st.sampled_from(["none", "own", "shared"]))
def test_what_must_be_free_holds_and_hardly_less_does(ram: int, vram: int, kind: str) -> None:
    gpus = {"none": (), "own": (Gpu("a", 0),), "shared": (Gpu("a", None),)}[kind]
    vram = vram if gpus else 0
    free, on_gpu = Machine(0, gpus, gpu_build=True).free_for(ram, vram)

    def machine(less: int) -> Machine:
        there = tuple(Gpu("a", None if gpu.free is None else on_gpu) for gpu in gpus)
        return Machine(free - less, there, gpu_build=True)

    assert machine(0).holds(ram, vram)
    assert not machine(3).holds(ram, vram)


def test_the_gpus_that_settings_choose() -> None:
    three = Machine(GIB, tuple(Gpu(name, size * GIB) for name, size in (("a", 10), ("b", 20), ("c", 30))), gpu_build=True)
    assert three.with_gpus({}) == three
    assert [gpu.name for gpu in three.with_gpus({"split_mode": "none"}).gpus] == ["a"]
    assert [gpu.name for gpu in three.with_gpus({"split_mode": "none", "main_gpu": 2}).gpus] == ["c"]


def test_shares_of_gpus_make_the_first_full_one_the_limit() -> None:
    two = Machine(GIB, (Gpu("a", 100 * GIB), Gpu("b", 20 * GIB)), gpu_build=True)
    assert two.usable_vram == 95 * GIB + 19 * GIB
    assert two.with_gpus({"tensor_split": "1,1"}).usable_vram == 38 * GIB
    assert two.with_gpus({"tensor_split": "3,1"}).usable_vram == 76 * GIB
    assert two.with_gpus({"tensor_split": "1,0"}).usable_vram == 95 * GIB
    assert two.with_gpus({"tensor_split": "0,0"}).usable_vram == two.usable_vram
