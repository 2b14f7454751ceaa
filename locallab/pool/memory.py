"""Memory that models take: what is free, what this process holds, what a model will need, giving it back."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
from pathlib import Path

import psutil

from locallab import hardware
from locallab.engine.limits import DEFAULT_CONTEXT, DEFAULT_POOL
from locallab.engine.llama import KV_BYTES
from locallab.errors import ModelLoadError
from locallab.models.gguf import Header, read
from locallab.settings import EngineSettings

MARGIN = 256 << 20
"""Bytes beside weights and KV that a load may take: compute buffers, the vocabulary, llama.cpp itself."""

UNKNOWN_KV = 0.25
"""KV pool of a file whose header tells nothing, as a part of its weights."""


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of this machine's memory, and of its GPUs' where they have one of their own."""

    ram: int = 0
    vram: int = 0

    def __add__(self, other: MemoryUse) -> MemoryUse:
        return MemoryUse(self.ram + other.ram, self.vram + other.vram)

    def at_least(self, other: MemoryUse) -> MemoryUse:
        return MemoryUse(max(self.ram, other.ram), max(self.vram, other.vram))

    def fits(self, room: MemoryUse) -> bool:
        return self.ram <= room.ram and self.vram <= room.vram


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """What the model at `path` will take: its weights at `least`, and `likely` its KV pool and buffers too."""

    path: Path
    least: MemoryUse
    likely: MemoryUse


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What this process holds at one moment. `own` are bytes of GPU memory that the driver counts to it, None where the
    driver does not know its processes (in a container); `device` are those that everybody together holds."""

    ram: int
    own: int | None = None
    device: int = 0

    def since(self, before: Reading) -> MemoryUse:
        vram = self.device - before.device if self.own is None else self.own - (before.own or 0)
        return MemoryUse(max(0, self.ram - before.ram), max(0, vram))


class Memory:
    """The machine's memory, as the pool asks for it. `gpu`: whether models are put on a GPU."""

    def __init__(self, gpu: bool = False) -> None:
        self.gpu = gpu and any(each["free_bytes"] is not None for each in hardware.gpus())

    def room(self) -> MemoryUse:
        """What a further model could take now."""
        # Weights are mapped files, which the system counts as memory it can have back: not while they are in use.
        mapped = psutil.Process().memory_info().shared
        vram = sum(gpu["free_bytes"] or 0 for gpu in hardware.gpus()) if self.gpu else 0
        return MemoryUse(max(0, hardware.available_memory() - mapped), vram)

    def reading(self) -> Reading:
        """What this process holds now."""
        ram = psutil.Process().memory_info().rss
        if not self.gpu:
            return Reading(ram)
        device = sum(gpu["total_bytes"] - gpu["free_bytes"] for gpu in hardware.gpus() if gpu["free_bytes"] is not None)
        return Reading(ram, hardware.own_vram(), device)

    def need(self, path: Path, settings: EngineSettings) -> Need:
        """What loading the file will take, from its header."""
        weights, kv = _sizes(path, settings)
        likely = weights + kv + MARGIN
        if not self.gpu or settings.gpu_layers == 0:
            return Need(path, MemoryUse(ram=weights), MemoryUse(ram=likely))
        if settings.gpu_layers > 0:  # split somewhere between the two: room for it on both sides is sure to do
            return Need(path, MemoryUse(), MemoryUse(likely, likely))
        return Need(path, MemoryUse(vram=weights), MemoryUse(MARGIN, likely))

    def give_back(self) -> None:
        """Returns what was freed to the system: glibc keeps it otherwise."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _sizes(path: Path, settings: EngineSettings) -> tuple[int, int]:
    """Bytes of the weights, and of the KV pool that the engine makes where memory is plentiful."""
    try:
        header = read(path)
    except ModelLoadError:  # the load itself will say what is wrong
        size = path.stat().st_size
        return size, int(size * UNKNOWN_KV)
    return sum(part.stat().st_size for part in header.parts), _kv(header, settings)


def _kv(header: Header, settings: EngineSettings) -> int:
    context = settings.context or min(header.number("context_length") or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    tokens = settings.kv_tokens or min(settings.parallel * context, max(2 * context, DEFAULT_POOL))
    return int(tokens * _kv_values(header) * KV_BYTES[settings.kv_type])


def _kv_values(header: Header) -> int:
    """Numbers in the KV cache of one token."""
    layers = header.number("block_count") or 0
    heads = header.number("attention.head_count") or 1
    each = (header.number("embedding_length") or 0) // heads
    width = (header.number("attention.key_length") or each) + (header.number("attention.value_length") or each)
    return width * sum(header.each_layer("attention.head_count_kv", layers, heads))
