"""Hardware of this machine that the process may use: CPU, memory, GPUs, disk. The limits of a container count."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from locallab import settings

X86_FLAGS = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
ARM_FLAGS = ("asimd", "asimddp", "i8mm", "sve")
FLAGS = X86_FLAGS + ARM_FLAGS
"""Instruction sets for which llama.cpp has kernels, by Linux's names."""

WHEELS = "https://abetlen.github.io/llama-cpp-python/whl"
WHEEL_LISTS = {
    "cu118": ((11, 8), (6, 0), (8, 9)),
    **{f"cu12{minor}": ((12, minor), (6, 0), (99, 0)) for minor in range(1, 6)},
    "cu130": ((13, 0), (7, 5), (99, 0)),
    "cu132": ((13, 2), (7, 5), (99, 0)),
}
"""Indexes of llama-cpp-python wheels with CUDA: its version, and the lowest and highest compute capability they run on."""

MEMORY_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Controller, limit, usage and reclaimable part of a control group's memory, for cgroup v2 and v1."""

READ_BYTES = 128 << 20
"""Bytes to read to measure the RAM: more than most caches hold."""

READ_TIMES = 3

ROOT = Path("/")


def facts() -> dict[str, Any]:
    """Return a description of the machine as JSON-able values. Sizes are bytes."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("locallab", "llama-cpp-python")},
        "cpu": cpu(),
        "memory": memory(),
        "gpus": gpus(),
        "disk": disk(settings.home()),
    }


def cpu(root: Path = ROOT) -> dict[str, Any]:
    """Return the processor's name, its cores and the engine's default number of threads."""
    lines = _pairs(root / "proc/cpuinfo")
    flags = (lines.get("flags") or lines.get("Features") or "").split()
    return {
        "model": lines.get("model name") or platform.machine(),
        "physical_cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "logical_cores": os.cpu_count() or 1,
        "threads": threads(root),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def threads(root: Path = ROOT) -> int:
    """Count the physical cores this process may use: those of its CPU affinity, within the CPU quotas of its control groups."""
    cores = set()
    for number in os.sched_getaffinity(0):
        topology = root / f"sys/devices/system/cpu/cpu{number}/topology"
        core = _text(topology / "core_id")
        # hyperthreads of one core share both ids; a CPU without them counts as a core
        cores.add((_text(topology / "physical_package_id"), core) if core else ("cpu", str(number)))
    quotas: list[float] = [len(cores)]
    for group in _groups(root, ""):
        share, _, period = _text(group / "cpu.max").partition(" ")
        if share.isdecimal():
            quotas.append(int(share) / int(period))
    for group in _groups(root, "cpu"):
        share_us, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if share_us and period_us:
            quotas.append(share_us / period_us)
    return max(1, int(min(quotas)))


def memory(root: Path = ROOT) -> dict[str, int]:
    """Return the bytes this process may use in all, and those it could still take without swapping."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for controller, limit_file, usage_file, reclaimable in MEMORY_FILES:
        for group in _groups(root, controller):
            limit, usage = _number(group / limit_file), _number(group / usage_file)
            if limit and usage is not None:
                usage -= int(_pairs(group / "memory.stat", " ").get(reclaimable, 0))  # the kernel drops this file cache first
                total = min(total, limit)
                available = min(available, max(0, limit - max(0, usage)))
    return {"total_bytes": total, "available_bytes": available}


def available_memory() -> int:
    """Return the bytes this process could still take without swapping, within the limits of its control groups."""
    return memory()["available_bytes"]


def ram_bandwidth() -> int | None:
    """Return how many bytes of RAM all threads of `threads` together read in a second, measured once for this process (a
    tenth of a second). None where there is hardly free memory to measure it with."""
    return _read_rate(threads()) if available_memory() >= 8 * READ_BYTES else None


@functools.cache
def _read_rate(count: int) -> int:
    import numpy as np

    parts = np.array_split(np.ones(READ_BYTES // 8, np.int64), count)
    seconds = []
    with ThreadPoolExecutor(count) as pool:
        for _ in range(READ_TIMES):
            began = time.perf_counter()
            list(pool.map(np.max, parts))
            seconds.append(time.perf_counter() - began)
    return int(READ_BYTES / min(seconds))


def gpus() -> list[dict[str, Any]]:
    """Return the NVIDIA GPUs with their current memory and load; empty without a driver. Unknown values are None."""
    with _driver() as nvml:
        try:
            count = nvml.nvmlDeviceGetCount() if nvml else 0
        except nvml.NVMLError:
            count = 0
        return [_gpu(nvml, index) for index in range(count)]


def own_vram() -> int | None:
    """Return the bytes of GPU memory of this process; None if the driver lists none (none used, or in a container)."""
    with _driver() as nvml:
        if nvml is None:
            return None
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            processes = [each for handle in handles for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        except nvml.NVMLError:
            return None
    own = [each.usedGpuMemory for each in processes if each.pid == os.getpid() and each.usedGpuMemory]
    return sum(own) or None


def cuda_version() -> tuple[int, int] | None:
    """Return the newest CUDA version that the NVIDIA driver supports; None without a driver."""
    with _driver() as nvml:
        try:
            version = int(nvml.nvmlSystemGetCudaDriverVersion()) if nvml else 0
        except nvml.NVMLError:
            version = 0
    return (version // 1000, version % 1000 // 10) if version else None


def cuda_hint(gpu_build: bool) -> str | None:
    """Return how to install a llama.cpp for this machine's NVIDIA GPU; None without one, or if `gpu_build` is true."""
    devices = [] if gpu_build else gpus()
    version = cuda_version() if devices else None
    if version is None:
        return None
    capability = tuple(int(part) for part in (devices[0]["compute_capability"] or "0.0").split("."))
    wheels = [
        index
        for index, (cuda, lowest, highest) in WHEEL_LISTS.items()
        if cuda <= version and lowest <= capability <= highest and platform.machine() == "x86_64"
    ]
    package = f"llama-cpp-python=={_version('llama-cpp-python')}"
    pip = f"{sys.executable} -m pip install --force-reinstall --no-deps"
    if wheels:
        command = f"{pip} --only-binary :all: --index-url {WHEELS}/{wheels[-1]} {package}"
    else:
        command = f'CMAKE_ARGS="-DGGML_CUDA=on" {pip} --no-cache-dir --no-binary llama-cpp-python {package}'
    name = devices[0]["name"]
    return f"{name} is not used: this llama.cpp was built without CUDA. For CUDA {version[0]}.{version[1]} run: {command}"


def disk(path: Path) -> dict[str, Any]:
    """Return the room on the file system of `path`, which need not exist yet."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    usage = shutil.disk_usage(existing)
    return {"path": str(path), "total_bytes": usage.total, "free_bytes": usage.free}


@contextlib.contextmanager
def _driver() -> Iterator[Any]:
    """Yield the initialized library of the NVIDIA driver; None without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    def query(name: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, name)(*arguments)
        except nvml.NVMLError:
            return None

    handle = query("nvmlDeviceGetHandleByIndex", index)
    room = query("nvmlDeviceGetMemoryInfo", handle)  # None where GPU and CPU share their memory
    capability = query("nvmlDeviceGetCudaComputeCapability", handle)
    load = query("nvmlDeviceGetUtilizationRates", handle)  # None for a GPU split into instances
    return {
        "index": index,
        "name": query("nvmlDeviceGetName", handle),
        "total_bytes": room and int(room.total),
        "free_bytes": room and int(room.free),
        "compute_capability": capability and "{}.{}".format(*capability),
        "driver": query("nvmlSystemGetDriverVersion"),
        "load_percent": load and int(load.gpu),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of this process's control group and its ancestors; `controller` "" is the unified (v2) tree."""
    top = root / "sys/fs/cgroup" / controller
    path_of_group = Path()
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            path_of_group = Path(path.lstrip("/"))
    yield top
    for depth in range(len(path_of_group.parts)):
        yield top.joinpath(*path_of_group.parts[: depth + 1])


def _pairs(path: Path, separator: str = ":") -> dict[str, str]:
    """Return the first value of each key in a file of `key<separator>value` lines."""
    pairs: dict[str, str] = {}
    for line in _text(path).splitlines():
        key, _, value = line.partition(separator)
        pairs.setdefault(key.strip(), value.strip())
    return pairs


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
