"""The memory and processors of this machine that models may use, as plain figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from locallab import hardware
from locallab.placement_settings import shares

RAM_MARGIN = 256 << 20
"""Bytes of free RAM left unused, or a tenth of it if that is more."""

GPU_MARGIN = 512 << 20
"""Bytes of each GPU's free memory left for CUDA itself, temporary buffers and those of samplers there (1.5 times the logits of
a step), or a twentieth of it if that is more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that llama.cpp can use; `free` is None where it shares the RAM."""

    name: str
    free: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """Free bytes of RAM, and the GPUs. `gpu_build` says that the installed llama.cpp can use a GPU. `ram_bandwidth` is how many
    bytes of RAM can be read in a second, None if it was not measured; `split` are the shares of the GPUs in a model, if they
    are not by free memory."""

    ram: int
    gpus: tuple[Gpu, ...] = ()
    threads: int = 1
    gpu_build: bool = False
    ram_bandwidth: int | None = dataclasses.field(default=None, compare=False)
    split: tuple[float, ...] = ()

    @classmethod
    def here(cls, gpu_build: bool, ram: int | None = None, vram: int = 0) -> Machine:
        """Return this machine as it is now, or with `ram` bytes of free RAM and `vram` more bytes of free GPU memory."""
        found = hardware.gpus()
        gpus = tuple(
            Gpu(
                str(gpu["name"] or "GPU"),
                None if gpu["free_bytes"] is None else min(gpu["total_bytes"], gpu["free_bytes"] + vram // len(found)),
            )
            for gpu in found
        )
        if gpu_build and not gpus:
            gpus = (Gpu("GPU", None),)  # of another maker, or integrated: its memory is unknown
        free = hardware.available_memory() if ram is None else ram
        return cls(free, gpus, hardware.threads(), gpu_build, hardware.ram_bandwidth())

    def with_gpus(self, settings: Mapping[str, Any]) -> Machine:
        """Return the machine with the GPUs that these settings spread a model over, and their shares."""
        if settings.get("split_mode") == "none":
            return dataclasses.replace(self, gpus=self.gpus[settings.get("main_gpu", 0) :][:1])
        return dataclasses.replace(self, split=shares(settings.get("tensor_split")))

    @property
    def has_gpu(self) -> bool:
        """True if layers can be put on a GPU."""
        return self.gpu_build and bool(self.gpus)

    @property
    def shared(self) -> bool:
        """True if the GPU takes its memory from the RAM."""
        return self.has_gpu and any(gpu.free is None for gpu in self.gpus)

    @property
    def usable_ram(self) -> int:
        """Bytes of RAM that a model may take."""
        return max(0, self.ram - max(RAM_MARGIN, self.ram // 10))

    @property
    def usable_vram(self) -> int:
        """Bytes of GPU memory that a model may take, over all GPUs."""
        if not self.has_gpu:
            return 0
        if self.shared:
            return self.usable_ram
        each = self.usable_each
        if not any(self.split):
            return sum(each)
        whole = sum(self.split)  # the first GPU to be full is the limit
        return int(min(free * whole / share for free, share in zip(each, self.split, strict=False) if share))

    @property
    def usable_each(self) -> list[int]:
        """Bytes of each GPU's own memory that a model may take."""
        return [max(0, gpu.free - max(GPU_MARGIN, gpu.free // 20)) if gpu.free else 0 for gpu in self.gpus]

    def free_for(self, ram: int, vram: int) -> tuple[int, int]:
        """Return the bytes of RAM and of GPU memory that must be free for `ram` and `vram` bytes to fit."""
        if self.shared:
            ram, vram = ram + vram, 0
        return _with_margin(ram, RAM_MARGIN, 10), _with_margin(vram, GPU_MARGIN * len(self.gpus), 20) if vram else 0

    def holds(self, ram: int, vram: int) -> bool:
        """Return whether `ram` and `vram` bytes fit together."""
        if self.shared:
            return ram + vram <= self.usable_ram
        return ram <= self.usable_ram and vram <= self.usable_vram


def _with_margin(size: int, least: int, share: int) -> int:
    """Return the bytes of which `size` remain usable if `least`, or a `share`-th if that is more, stays free."""
    return max(size + least, -(-size * share // (share - 1)))
