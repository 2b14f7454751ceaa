"""What this machine has, and what of it this process may use: CPU, memory, GPUs, disk. Limits of a container count."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from locallab import settings

X86_FLAGS = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
ARM_FLAGS = ("asimd", "asimddp", "i8mm", "sve")
FLAGS = X86_FLAGS + ARM_FLAGS
"""The instruction sets that llama.cpp has kernels for, as Linux names them."""

WHEELS = "https://abetlen.github.io/llama-cpp-python/whl"
WHEEL_LISTS = {
    "cu118": ((11, 8), (6, 0), (8, 9)),
    **{f"cu12{minor}": ((12, minor), (6, 0), (99, 0)) for minor in range(1, 6)},
    "cu130": ((13, 0), (7, 5), (99, 0)),
    "cu132": ((13, 2), (7, 5), (99, 0)),
}
"""Lists of llama-cpp-python wheels with CUDA, by its version, with the least and the highest compute capability they run on."""

ROOT = Path("/")


def facts() -> dict[str, Any]:
    """Everything worth telling about the machine, as plain JSON-able values. Sizes are bytes."""
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
    """The processor: its name, its cores, and how many threads the engine uses by default."""
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
    """Physical cores this process may use: of its CPU affinity, within the CPU quota of its control group."""
    allowed = os.sched_getaffinity(0)
    cores = {_core(root, number) for number in allowed}
    quota = min(_cpu_quotas(root), default=float("inf"))
    return max(1, int(min(len(cores), quota)))


def memory(root: Path = ROOT) -> dict[str, int]:
    """Bytes this process may use in all, and bytes it could still take without swapping."""
    machine = psutil.virtual_memory()
    groups = list(_memory_groups(root))
    total = min([machine.total, *(limit for limit, _ in groups)])
    available = min([machine.available, *(max(0, limit - used) for limit, used in groups)])
    return {"total_bytes": total, "available_bytes": available}


def available_memory() -> int:
    """Bytes this process could still take without swapping, within the memory limit of its control group."""
    return memory()["available_bytes"]


def gpus() -> list[dict[str, Any]]:
    """NVIDIA GPUs with their memory and load now; empty without a driver. What a GPU does not tell is None."""
    with _driver() as nvml:
        try:
            count = nvml.nvmlDeviceGetCount() if nvml else 0
        except nvml.NVMLError:
            count = 0
        return [_gpu(nvml, index) for index in range(count)]


def own_vram() -> int | None:
    """Bytes of GPU memory that the driver counts to this process; None where it does not tell (none used, a container)."""
    with _driver() as nvml:
        if nvml is None:
            return None
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            found = [each for handle in handles for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        except nvml.NVMLError:
            return None
    own = [each.usedGpuMemory for each in found if each.pid == os.getpid() and each.usedGpuMemory]
    return sum(own) or None


def cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver runs; None without a driver."""
    with _driver() as nvml:
        try:
            version = int(nvml.nvmlSystemGetCudaDriverVersion()) if nvml else 0
        except nvml.NVMLError:
            version = 0
    return (version // 1000, version % 1000 // 10) if version else None


def cuda_hint(gpu_build: bool) -> str | None:
    """How to install a llama.cpp that uses the NVIDIA GPU of this machine; None without one, or where it does already."""
    found = [] if gpu_build else gpus()
    version = cuda_version() if found else None
    if version is None:
        return None
    wanted = f"llama-cpp-python=={_version('llama-cpp-python')}"
    index = _wheels(version, found[0]["compute_capability"])
    pip = f"{sys.executable} -m pip install --force-reinstall --no-deps"
    if index:
        command = f"{pip} --only-binary :all: --index-url {WHEELS}/{index} {wanted}"
    else:
        command = f'CMAKE_ARGS="-DGGML_CUDA=on" {pip} --no-cache-dir --no-binary llama-cpp-python {wanted}'
    name = found[0]["name"]
    return f"{name} is not used: this llama.cpp was built without CUDA. For CUDA {version[0]}.{version[1]} run: {command}"


def _wheels(driver: tuple[int, int], capability: str | None) -> str | None:
    """The newest list of ready-made wheels that this driver and this GPU can run."""
    able = tuple(int(part) for part in (capability or "0.0").split("."))
    fitting = [
        index
        for index, (cuda, least, most) in WHEEL_LISTS.items()
        if cuda <= driver and least <= able <= most and platform.machine() == "x86_64"
    ]
    return fitting[-1] if fitting else None


def disk(path: Path) -> dict[str, Any]:
    """Room on the file system that holds `path`, which need not exist yet."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    usage = shutil.disk_usage(existing)
    return {"path": str(path), "total_bytes": usage.total, "free_bytes": usage.free}


@contextlib.contextmanager
def _driver() -> Iterator[Any]:
    """The NVIDIA driver's library, ready to be asked; None without a driver."""
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
    def ask(name: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, name)(*arguments)
        except nvml.NVMLError:
            return None

    handle = ask("nvmlDeviceGetHandleByIndex", index)
    room = ask("nvmlDeviceGetMemoryInfo", handle)  # none where GPU and CPU share their memory
    capability = ask("nvmlDeviceGetCudaComputeCapability", handle)
    load = ask("nvmlDeviceGetUtilizationRates", handle)  # none for a GPU cut into instances
    return {
        "index": index,
        "name": ask("nvmlDeviceGetName", handle),
        "total_bytes": room and int(room.total),
        "free_bytes": room and int(room.free),
        "compute_capability": capability and "{}.{}".format(*capability),
        "driver": ask("nvmlSystemGetDriverVersion"),
        "load_percent": load and int(load.gpu),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _core(root: Path, number: int) -> tuple[str, str]:
    """What two hyperthreads of one core have in common; a CPU that does not tell counts as a core of its own."""
    topology = root / f"sys/devices/system/cpu/cpu{number}/topology"
    core = _text(topology / "core_id")
    return (_text(topology / "physical_package_id"), core) if core else ("cpu", str(number))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """CPUs' worth of time that each enclosing control group allows."""
    for group in _groups(root, ""):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdecimal():
            yield int(quota) / int(period)
    for group in _groups(root, "cpu"):
        old, span = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if old and span:
            yield old / span


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, use) in bytes of each enclosing control group that has a limit. File cache that can be dropped is no use."""
    names = (("", "memory.max", "memory.current", "inactive_file"),)
    older = (("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),)
    for controller, limit, use, reclaimable in names + older:
        for group in _groups(root, controller):
            limited, used = _number(group / limit), _number(group / use)
            if limited and used is not None:
                yield limited, max(0, used - int(_pairs(group / "memory.stat", " ").get(reclaimable, 0)))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Directories of this process's control group and of those around it; `controller` "" is the unified (v2) tree."""
    top = root / "sys/fs/cgroup" / controller
    inside = Path()
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            inside = Path(path.lstrip("/"))
    yield top
    for depth in range(len(inside.parts)):
        yield top.joinpath(*inside.parts[: depth + 1])


def _pairs(path: Path, separator: str = ":") -> dict[str, str]:
    """First value of each key of a file of `key<separator>value` lines."""
    found: dict[str, str] = {}
    for line in _text(path).splitlines():
        key, _, value = line.partition(separator)
        found.setdefault(key.strip(), value.strip())
    return found


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
