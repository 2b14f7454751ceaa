"""The memory of models: how much is free, how much this process holds, how much a model needs, and returning it."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from locallab import hardware
from locallab.engine.adapters import AdapterFile
from locallab.engine.devices import devices, gpus
from locallab.errors import ModelLoadError
from locallab.fit import Fit, Machine, check_placement, file_shape, fit_model, fitted
from locallab.models import gguf
from locallab.models.spec import ModelSpec
from locallab.settings import EngineSettings, configured, resolve

Layers = Sequence[tuple[str, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of RAM, and of GPU memory on GPUs that do not share the RAM."""

    ram: int = 0
    vram: int = 0

    def __add__(self, other: MemoryUse) -> MemoryUse:
        return MemoryUse(self.ram + other.ram, self.vram + other.vram)

    def at_least(self, other: MemoryUse) -> MemoryUse:
        return MemoryUse(max(self.ram, other.ram), max(self.vram, other.vram))

    def fits(self, room: MemoryUse) -> bool:
        return self.ram <= room.ram and self.vram <= room.vram


NO_MEMORY = MemoryUse()


PROJECTOR = 3
"""Halves of its file's size that a projector takes, with the buffers in which it works."""


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """Memory for the model at `path`: `least` for its weights alone, `likely` for all of it with the margins of `fit`."""

    path: Path
    least: MemoryUse
    likely: MemoryUse


@dataclasses.dataclass(frozen=True, slots=True)
class Suited:
    """The settings to load a model with, the memory it needs, and the reason for them in a line.

    `header` and `fit` are what they come from; `fit` is None where the header could not be used. `draft` is the draft model,
    which is loaded together with it and counted in its need, as are the projector that its settings name and its `adapters`.
    """

    settings: EngineSettings
    need: Need
    reason: str
    header: gguf.Header | None = None
    fit: Fit | None = None
    draft: Suited | None = None
    adapters: tuple[AdapterFile, ...] = ()

    @property
    def files(self) -> tuple[Suited, ...]:
        """This model alone, with its projector, with each of its adapters, and its draft model: the files to be loaded, one
        more each time."""
        bare = dataclasses.replace(self, adapters=())
        alone = dataclasses.replace(bare, settings=dataclasses.replace(self.settings, mmproj=None))
        adapted = (dataclasses.replace(alone, adapters=(each,)) for each in self.adapters)
        return (alone, *([bare] if self.settings.mmproj else []), *adapted, *([self.draft] if self.draft else []))

    @property
    def subject(self) -> Path:
        """The file of those in `files` that is loaded beyond the model alone, or the model's."""
        if self.adapters:
            return self.adapters[0].path
        return Path(self.settings.mmproj) if self.settings.mmproj else self.need.path

    def with_adapters(self, adapters: Sequence[AdapterFile]) -> Suited:
        """Return the same with these adapters, which lie where the weights do."""
        if not adapters:
            return self
        size = sum(each.path.stat().st_size for each in adapters)
        more = MemoryUse(vram=size) if self.need.least.vram else MemoryUse(ram=size)
        need = dataclasses.replace(self.need, least=self.need.least + more, likely=self.need.likely + more)
        return dataclasses.replace(self, adapters=tuple(adapters), need=need)


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """Bytes this process holds at one moment. `own` is its GPU memory by the driver's count, None where the driver cannot
    attribute it (in a container); `device` is the GPU memory in use by all processes."""

    ram: int
    own: int | None = None
    device: int = 0

    def since(self, before: Reading) -> MemoryUse:
        vram = self.device - before.device if self.own is None else self.own - (before.own or 0)
        return MemoryUse(max(0, self.ram - before.ram), max(0, vram))


class Memory:
    """The machine's memory as the pool sees it. `gpu` says that llama.cpp puts models on a GPU, `limit` how many bytes of RAM
    models may take (None: what is free)."""

    def __init__(self, gpu: bool = False, limit: int | None = None) -> None:
        self._gpu_build = gpu
        self._limit = limit
        self.gpu = gpu and any(each["free_bytes"] is not None for each in hardware.gpus())

    def room(self) -> MemoryUse:
        """Return the memory free for another model."""
        # Weights are mapped files, which the system counts as available; it cannot reclaim them while they are in use.
        mapped = psutil.Process().memory_info().shared
        vram = sum(gpu["free_bytes"] or 0 for gpu in hardware.gpus()) if self.gpu else 0
        return MemoryUse(self.limited(max(0, hardware.available_memory() - mapped)), vram)

    def limited(self, ram: int) -> int:
        """Return how much of `ram` models may take."""
        return ram if self._limit is None else min(ram, self._limit)

    def machine(self, held: MemoryUse) -> Machine:
        """Return this machine with the memory that is free now and `held` together."""
        return Machine.here(self._gpu_build, self.limited((self.room() + held).ram), held.vram)

    def reading(self) -> Reading:
        """Measure the memory of this process."""
        ram = psutil.Process().memory_info().rss
        if not self.gpu:
            return Reading(ram)
        device = sum(gpu["total_bytes"] - gpu["free_bytes"] for gpu in hardware.gpus() if gpu["free_bytes"] is not None)
        return Reading(ram, hardware.own_vram(), device)

    def suit(
        self,
        spec: ModelSpec,
        path: Path,
        layers: Layers,
        held: MemoryUse = NO_MEMORY,
        header: gguf.Header | None = None,
        draft: Path | None = None,
        mmproj: Path | None = None,
    ) -> Suited:
        """Fit the model at `path`, with the one that drafts for it at `draft` and its projector at `mmproj`, to the free memory
        and `held` together. Its header is read unless it is passed.

        Raises ModelLoadError if it does not fit, ConfigError.
        """
        taken = _projector(mmproj, self.gpu)
        room = self.room() + held
        machine = Machine.here(self._gpu_build, self.limited(max(0, room.ram - taken.ram)), held.vram - taken.vram)
        beside = file_shape(draft) if draft else None
        try:
            header = header or gguf.read(path)
            _check(spec, layers, header)
            fit = fit_model(spec, header, machine, layers, beside)
        except ModelLoadError:  # llama.cpp may accept the file, and explains better what is wrong with it
            _check(spec, layers, None)
            guess = fit_model(msgspec.structs.replace(spec, size=path.stat().st_size), None, machine, layers, beside)
            suited = Suited(settings_of(spec, layers), _need(path, guess, machine), "its header cannot be read", header)
            return _with_mmproj(_with_draft(suited, draft), mmproj, taken)
        if not fit.fits:
            raise ModelLoadError(path, fit.reason)
        suited = Suited(fitted(spec, fit, layers), _need(path, fit, machine), fit.reason, header, fit)
        return _with_mmproj(_with_draft(suited, None if header.embeds else draft), None if header.embeds else mmproj, taken)

    def suit_again(self, suited: Suited, spec: ModelSpec, layers: Layers) -> Suited:
        """Return `suited` if fitting the model to the memory free now would change nothing, else a new fit.

        Raises ModelLoadError if the model no longer fits, ConfigError.
        """
        fit = suited.fit
        if fit is None:
            return suited
        machine = Machine.here(self._gpu_build, self.room().ram)
        if fit.full and machine.holds(fit.estimate.ram + (fit.cache_ram_mib << 20), fit.estimate.gpu):
            return suited
        draft = suited.draft.need.path if suited.draft else None
        mmproj = Path(suited.settings.mmproj) if suited.settings.mmproj else None
        return self.suit(spec, suited.need.path, layers, header=suited.header, draft=draft, mmproj=mmproj).with_adapters(
            suited.adapters
        )

    def give_back(self) -> None:
        """Return freed memory to the system; glibc keeps it otherwise."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def settings_of(spec: ModelSpec, layers: Layers) -> EngineSettings:
    """Return the model's settings before any fit to the machine. Raises ConfigError."""
    return resolve(EngineSettings, (f"models.yaml: {spec.id}", spec.engine_settings), *layers)


def _check(spec: ModelSpec, layers: Layers, header: gguf.Header | None) -> None:
    """Raise ConfigError for a setting that this model or this machine cannot have."""
    options = configured(EngineSettings, (f"models.yaml: {spec.id}", spec.engine_settings), *layers)
    check_placement(options, header, [each.name for each in devices()], [each.name for each in gpus()])


def _with_draft(suited: Suited, draft: Path | None) -> Suited:
    """Return the model with the draft model at `draft`, or without one whatever the settings say."""
    if draft is None:
        return dataclasses.replace(suited, settings=dataclasses.replace(suited.settings, draft_model=None))
    own = dataclasses.replace(suited.settings, draft_model=None)
    header = None
    with contextlib.suppress(ModelLoadError):
        header = gguf.read(draft)
    beside = Suited(own, dataclasses.replace(suited.need, path=draft), "it drafts for another model", header)
    settings = dataclasses.replace(suited.settings, draft_model=str(draft))
    return dataclasses.replace(suited, settings=settings, draft=beside)


def _projector(mmproj: Path | None, on_gpu: bool) -> MemoryUse:
    """Return the memory that a projector takes, with its buffers. Raises ModelLoadError if it is not there."""
    if mmproj is None:
        return NO_MEMORY
    try:
        size = PROJECTOR * mmproj.stat().st_size // 2
    except OSError as error:
        raise ModelLoadError(mmproj, error.strerror or str(error)) from None
    return MemoryUse(0, size) if on_gpu else MemoryUse(size)


def _with_mmproj(suited: Suited, mmproj: Path | None, taken: MemoryUse) -> Suited:
    """Return the model with the projector, or without one whatever the settings say."""
    settings = dataclasses.replace(suited.settings, mmproj=None if mmproj is None else str(mmproj))
    need = dataclasses.replace(suited.need, least=suited.need.least + taken, likely=suited.need.likely + taken)
    draft = suited.draft
    if draft is not None:
        draft = dataclasses.replace(draft, settings=dataclasses.replace(draft.settings, mmproj=None))
    return dataclasses.replace(suited, settings=settings, need=need, draft=draft)


def _need(path: Path, fit: Fit, machine: Machine) -> Need:
    weights, needs = fit.estimate.gpu_weights, fit.estimate
    likely = MemoryUse(*machine.free_for(needs.ram + (fit.cache_ram_mib << 20), needs.gpu))
    if machine.shared:
        return Need(path, MemoryUse(needs.weights), likely)
    return Need(path, MemoryUse(needs.weights - weights, weights), likely)
