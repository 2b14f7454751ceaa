"""Memory that models take: what is free, what this process holds, what a model will need, giving it back."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from locallab import hardware
from locallab.errors import ModelLoadError
from locallab.fit import Fit, Machine, fit_model, fitted
from locallab.models.spec import ModelSpec
from locallab.settings import EngineSettings, resolve

Layers = Sequence[tuple[str, Mapping[str, Any]]]


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


NO_MEMORY = MemoryUse()


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """What the model at `path` will take: its weights at `least`, and `likely` all that it wants, with some to spare."""

    path: Path
    least: MemoryUse
    likely: MemoryUse


@dataclasses.dataclass(frozen=True, slots=True)
class Suited:
    """How a model is to be loaded, what that will take, and why so, in a line."""

    settings: EngineSettings
    need: Need
    reason: str


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
    """The machine's memory, as the pool asks for it. `gpu`: whether llama.cpp puts models on a GPU."""

    def __init__(self, gpu: bool = False) -> None:
        self._gpu_build = gpu
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

    def suit(self, spec: ModelSpec, path: Path, layers: Layers, held: MemoryUse = NO_MEMORY) -> Suited:
        """How the model at `path` is loaded here when `held` is free too, and what it will take.

        Raises ModelLoadError when it does not fit, ConfigError.
        """
        machine = Machine.here(self._gpu_build, (self.room() + held).ram, held.vram)
        try:
            fit = fit_model(spec, path, machine, layers)
        except ModelLoadError:  # llama.cpp may know what we do not, and says better what is wrong
            size = path.stat().st_size
            fit = fit_model(msgspec.structs.replace(spec, size=size), None, machine, layers)
            return Suited(settings_of(spec, layers), _need(path, fit, machine), "its header cannot be read")
        if not fit.fits:
            raise ModelLoadError(path, fit.reason)
        return Suited(fitted(spec, fit, layers), _need(path, fit, machine), fit.reason)

    def give_back(self) -> None:
        """Returns what was freed to the system: glibc keeps it otherwise."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def settings_of(spec: ModelSpec, layers: Layers) -> EngineSettings:
    """What is fixed of the settings of this model, whatever the machine is. Raises ConfigError."""
    return resolve(EngineSettings, (f"models.yaml: {spec.id}", spec.engine_settings), *layers)


def _need(path: Path, fit: Fit, machine: Machine) -> Need:
    """What was chosen takes this, and so much has to be free for it to be chosen again."""
    weights, needs = fit.estimate.gpu_weights, fit.estimate
    likely = MemoryUse(*machine.free_for(needs.ram + (fit.cache_ram_mib << 20), needs.gpu))
    if machine.shared:
        return Need(path, MemoryUse(needs.weights), likely)
    return Need(path, MemoryUse(needs.weights - weights, weights), likely)
