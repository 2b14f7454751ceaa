"""What of this machine models may use, as plain figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from locallab import hardware

RAM_MARGIN = 256 << 20
"""Bytes of the free RAM that stay free at least; a tenth of it if that is more."""

GPU_MARGIN = 512 << 20
"""Bytes of each GPU's free memory that CUDA itself takes, and what comes and goes while it computes; a twentieth if that is
more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that llama.cpp can use; `free` is None where it shares the RAM."""

    name: str
    free: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """Free bytes of RAM, and the GPUs. `gpu_build` is whether the installed llama.cpp can use a GPU at all."""

    ram: int
    gpus: tuple[Gpu, ...] = ()
    threads: int = 1
    gpu_build: bool = False

    @classmethod
    def here(cls, gpu_build: bool, ram: int | None = None, vram: int = 0) -> Machine:
        """This machine as it is now, or with so much RAM free, and so much GPU memory more."""
        found = hardware.gpus()
        gpus = tuple(Gpu(str(gpu["name"] or "GPU"), _free(gpu, vram // len(found))) for gpu in found)
        if gpu_build and not gpus:
            gpus = (Gpu("GPU", None),)  # of another maker, or a part of the processor: nobody tells how much memory it has
        return cls(hardware.available_memory() if ram is None else ram, gpus, hardware.threads(), gpu_build)

    @property
    def has_gpu(self) -> bool:
        """Whether layers can go on a GPU."""
        return self.gpu_build and bool(self.gpus)

    @property
    def shared(self) -> bool:
        """Whether what is on the GPU takes from the RAM."""
        return self.has_gpu and any(gpu.free is None for gpu in self.gpus)

    @property
    def usable_ram(self) -> int:
        """Bytes of RAM that a model may take."""
        return max(0, self.ram - max(RAM_MARGIN, self.ram // 10))

    @property
    def usable_vram(self) -> int:
        """Bytes that a model may take of all GPUs together."""
        if not self.has_gpu:
            return 0
        if self.shared:
            return self.usable_ram
        return sum(max(0, gpu.free - max(GPU_MARGIN, gpu.free // 20)) for gpu in self.gpus if gpu.free)

    def free_for(self, ram: int, vram: int) -> tuple[int, int]:
        """Bytes of RAM, and of GPU memory, that must be free so that so much fits."""
        if self.shared:
            ram, vram = ram + vram, 0
        return _with_margin(ram, RAM_MARGIN, 10), _with_margin(vram, GPU_MARGIN * len(self.gpus), 20) if vram else 0

    def holds(self, ram: int, vram: int) -> bool:
        """Whether so much fits at the same time."""
        if self.shared:
            return ram + vram <= self.usable_ram
        return ram <= self.usable_ram and vram <= self.usable_vram


def _free(gpu: Mapping[str, Any], more: int) -> int | None:
    """Bytes of the GPU's memory that are free when `more` is given back; None where it shares the RAM."""
    free: int | None = gpu["free_bytes"]
    return None if free is None else min(gpu["total_bytes"], free + more)


def _with_margin(size: int, least: int, share: int) -> int:
    """The bytes of which `size` are left when `least`, or one in `share` if that is more, stays free."""
    return max(size + least, -(-size * share // (share - 1)))
