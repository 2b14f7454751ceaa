from __future__ import annotations

import json
import os
import platform
import sys
import types
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest

from locallab import hardware


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the root of a machine with two cores of two hyperthreads each."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    for number in range(4):
        write(tmp_path, f"sys/devices/system/cpu/cpu{number}/topology/physical_package_id", "0")
        write(tmp_path, f"sys/devices/system/cpu/cpu{number}/topology/core_id", str(number % 2))
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text + "\n")


def test_facts_are_plain_json() -> None:
    facts = hardware.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"]["threads"] >= 1
    assert 0 < facts["memory"]["available_bytes"] <= facts["memory"]["total_bytes"]
    assert facts["disk"]["free_bytes"] <= facts["disk"]["total_bytes"]
    assert facts["versions"]["llama-cpp-python"]


def test_threads_are_physical_cores(four_threads: Path) -> None:
    assert hardware.threads(four_threads) == 2


def test_threads_respect_the_affinity(four_threads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3})
    assert hardware.threads(four_threads) == 1


def test_threads_without_topology_are_the_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 9})
    assert hardware.threads(tmp_path) == 3


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("900000 100000", 2)],
    ids=["unlimited", "one and a half", "half a CPU", "more than there is"],
)
def test_threads_respect_the_quota(four_threads: Path, quota: str, expected: int) -> None:
    write(four_threads, "proc/self/cgroup", "0::/a/b")
    write(four_threads, "sys/fs/cgroup/a/cpu.max", quota)
    write(four_threads, "sys/fs/cgroup/a/b/cpu.max", "max 100000")
    assert hardware.threads(four_threads) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 2), ("100000", 1)])
def test_threads_respect_an_older_quota(four_threads: Path, quota: str, expected: int) -> None:
    write(four_threads, "proc/self/cgroup", "4:cpu,cpuacct:/job\n0::/")
    write(four_threads, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", quota)
    write(four_threads, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000")
    assert hardware.threads(four_threads) == expected


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = types.SimpleNamespace(total=16_000, available=12_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def test_memory_without_a_limit_is_the_machine_s(machine: None, tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/")
    write(tmp_path, "sys/fs/cgroup/memory.max", "max")
    write(tmp_path, "sys/fs/cgroup/memory.current", "5000")
    assert hardware.memory(tmp_path) == {"total_bytes": 16_000, "available_bytes": 12_000}


def test_memory_limit_of_a_container_counts_without_droppable_cache(machine: None, tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/")
    write(tmp_path, "sys/fs/cgroup/memory.max", "8000")
    write(tmp_path, "sys/fs/cgroup/memory.current", "5000")
    write(tmp_path, "sys/fs/cgroup/memory.stat", "anon 3000\ninactive_file 2000")
    assert hardware.memory(tmp_path) == {"total_bytes": 8_000, "available_bytes": 5_000}


def test_memory_limit_of_an_older_container(machine: None, tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "3:memory:/job")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    write(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", "10000")
    write(tmp_path, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "6000")
    write(tmp_path, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", "7000")
    assert hardware.memory(tmp_path) == {"total_bytes": 6_000, "available_bytes": 0}


def test_available_memory_is_that_of_the_facts(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "memory", lambda: {"available_bytes": 7})
    assert hardware.available_memory() == 7


def test_cpu_is_read_from_the_kernel(four_threads: Path) -> None:
    write(four_threads, "proc/cpuinfo", "model name\t: Fast One\nflags\t\t: fpu avx2 fma sse4_2\n\nmodel name\t: Other")
    cpu = hardware.cpu(four_threads)
    assert cpu["model"] == "Fast One"
    assert cpu["flags"] == ["sse4_2", "fma", "avx2"]


def test_disk_of_a_path_to_be_made(tmp_path: Path) -> None:
    assert hardware.disk(tmp_path / "not" / "yet")["total_bytes"] == hardware.disk(tmp_path)["total_bytes"]


class NVMLError(Exception):
    pass


Process = namedtuple("Process", "pid usedGpuMemory")


@pytest.mark.parametrize(
    ("processes", "own"),
    [
        ([Process(os.getpid(), 5), Process(1, 7), Process(os.getpid(), 6)], 11),
        ([Process(1, 7)], None),
        ([Process(os.getpid(), None)], None),
    ],
    ids=["listed", "not listed", "without a figure"],
)
def test_own_vram(monkeypatch: pytest.MonkeyPatch, processes: list[Any], own: int | None) -> None:
    fake_nvml(
        monkeypatch,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: processes,
    )
    assert hardware.own_vram() == own


def test_own_vram_where_the_driver_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, nvmlDeviceGetCount=refuse)
    assert hardware.own_vram() is None
    sys.modules["pynvml"].nvmlInit = refuse  # type: ignore[attr-defined]
    assert hardware.own_vram() is None


def fake_nvml(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    nvml = types.SimpleNamespace(NVMLError=NVMLError, nvmlInit=lambda: None, nvmlShutdown=lambda: None, **functions)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def refuse(*arguments: Any) -> Any:
    raise NVMLError


Room = namedtuple("Room", "total free")


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(
        monkeypatch,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "Some GPU",
        nvmlDeviceGetMemoryInfo=lambda handle: Room(16, 15),
        nvmlDeviceGetCudaComputeCapability=lambda handle: (7, 5),
        nvmlSystemGetDriverVersion=lambda: "550.1",
        nvmlDeviceGetUtilizationRates=refuse,
    )
    assert hardware.gpus() == [
        {
            "index": 0,
            "name": "Some GPU",
            "total_bytes": 16,
            "free_bytes": 15,
            "compute_capability": "7.5",
            "driver": "550.1",
            "load_percent": None,
        }
    ]


def test_a_driver_that_counts_no_gpus_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, nvmlDeviceGetCount=refuse)
    assert hardware.gpus() == []


def test_no_driver_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch)
    sys.modules["pynvml"].nvmlInit = refuse  # type: ignore[attr-defined]
    assert hardware.gpus() == []


def test_versions_of_what_is_not_installed_are_none() -> None:
    assert hardware._version("no-such-distribution") is None
    assert isinstance(hardware._version("click"), str)


def card(monkeypatch: pytest.MonkeyPatch, cuda: int, capability: tuple[int, int] = (7, 5)) -> None:
    """Fake an NVIDIA T4, with another compute capability if wanted, whose driver supports this CUDA."""
    fake_nvml(
        monkeypatch,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "Tesla T4",
        nvmlDeviceGetMemoryInfo=lambda handle: Room(16, 15),
        nvmlDeviceGetCudaComputeCapability=lambda handle: capability,
        nvmlSystemGetDriverVersion=lambda: "550.1",
        nvmlDeviceGetUtilizationRates=refuse,
        nvmlSystemGetCudaDriverVersion=lambda: cuda,
    )
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_the_driver_s_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 12040)
    assert hardware.cuda_version() == (12, 4)
    fake_nvml(monkeypatch, nvmlSystemGetCudaDriverVersion=refuse)
    assert hardware.cuda_version() is None
    monkeypatch.setitem(sys.modules, "pynvml", types.SimpleNamespace(NVMLError=NVMLError, nvmlInit=refuse))
    assert hardware.cuda_version() is None


@pytest.mark.parametrize(
    ("cuda", "capability", "index"),
    [
        (11080, (7, 5), "cu118"),
        (12000, (8, 9), "cu118"),
        (12010, (7, 5), "cu121"),
        (12040, (7, 5), "cu124"),
        (12090, (9, 0), "cu125"),
        (13000, (12, 0), "cu130"),
        (13010, (7, 5), "cu130"),
        (13030, (8, 6), "cu132"),
        (13030, (7, 0), "cu125"),
    ],
)
def test_the_hint_names_the_wheels_for_this_cuda_and_gpu(
    monkeypatch: pytest.MonkeyPatch, cuda: int, capability: tuple[int, int], index: str
) -> None:
    card(monkeypatch, cuda, capability)
    hint = hardware.cuda_hint(gpu_build=False)
    version = hardware.facts()["versions"]["llama-cpp-python"]
    assert hint == (
        f"Tesla T4 is not used: this llama.cpp was built without CUDA. For CUDA {cuda // 1000}.{cuda % 1000 // 10} run:"
        f" {sys.executable} -m pip install --force-reinstall --no-deps --only-binary :all:"
        f" --index-url https://abetlen.github.io/llama-cpp-python/whl/{index} llama-cpp-python=={version}"
    )


@pytest.mark.parametrize(
    ("cuda", "capability", "machine"),
    [(11040, (7, 5), "x86_64"), (12040, (5, 2), "x86_64"), (12000, (9, 0), "x86_64"), (12040, (9, 0), "aarch64")],
    ids=["old CUDA", "old GPU", "no wheels for both", "another processor"],
)
def test_where_there_are_no_wheels_the_hint_builds_one(
    monkeypatch: pytest.MonkeyPatch, cuda: int, capability: tuple[int, int], machine: str
) -> None:
    card(monkeypatch, cuda, capability)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    hint = hardware.cuda_hint(gpu_build=False)
    assert hint
    assert f'run: CMAKE_ARGS="-DGGML_CUDA=on" {sys.executable} -m pip install' in hint
    assert "--index-url" not in hint


def test_no_hint_where_nothing_is_amiss(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 12040)
    assert hardware.cuda_hint(gpu_build=True) is None
    monkeypatch.setitem(sys.modules, "pynvml", types.SimpleNamespace(NVMLError=NVMLError, nvmlInit=refuse))
    assert hardware.cuda_hint(gpu_build=False) is None


def test_ram_is_measured_once_and_only_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "READ_BYTES", 1 << 20)
    hardware._read_rate.cache_clear()
    try:
        found = hardware.ram_bandwidth()
        assert found and 10**8 < found < 10**13
        assert hardware.ram_bandwidth() == found
        monkeypatch.setattr(hardware, "available_memory", lambda: (8 << 20) - 1)
        assert hardware.ram_bandwidth() is None
    finally:
        hardware._read_rate.cache_clear()
