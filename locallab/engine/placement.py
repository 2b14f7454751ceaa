"""Where llama.cpp puts a model's tensors and how it reads and encodes them: settings as fields of llama.h's parameters."""

from __future__ import annotations

import ctypes
import dataclasses
import threading
from typing import Any

import llama_cpp

from locallab.engine import devices
from locallab.errors import ConfigError
from locallab.placement_settings import EXPERTS, Numa, SplitMode, experts_of, overrides, shares
from locallab.settings import EngineSettings

SPLIT_MODES: dict[SplitMode, int] = {
    "none": llama_cpp.LLAMA_SPLIT_MODE_NONE,
    "layer": llama_cpp.LLAMA_SPLIT_MODE_LAYER,
    "row": llama_cpp.LLAMA_SPLIT_MODE_ROW,
    "tensor": llama_cpp.LLAMA_SPLIT_MODE_TENSOR,
}
ROPE_SCALINGS = {"none": 0, "linear": 1, "yarn": 2}
"""LLAMA_ROPE_SCALING_TYPE_*."""

NUMAS: dict[Numa, int] = {
    "distribute": llama_cpp.GGML_NUMA_STRATEGY_DISTRIBUTE,
    "isolate": llama_cpp.GGML_NUMA_STRATEGY_ISOLATE,
    "numactl": llama_cpp.GGML_NUMA_STRATEGY_NUMACTL,
}
LOAD_MODES = {
    (True, False): llama_cpp.LLAMA_LOAD_MODE_AUTO,
    (True, True): llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK,
    (False, False): llama_cpp.LLAMA_LOAD_MODE_NONE,
    (False, True): llama_cpp.LLAMA_LOAD_MODE_MLOCK,
}
"""By the settings mmap and mlock. AUTO maps the file unless a device cannot."""

CPU = "CPU"


class _Override(ctypes.Structure):
    """struct llama_model_tensor_buft_override."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """The devices of a model's tensors: pairs of a pattern and a device, the first that matches counts; then the split of
    `gpu_layers` over several GPUs. `mmap`, `mlock`: how the file is read."""

    gpu_layers: int = -1
    overrides: tuple[tuple[str, str], ...] = ()
    split_mode: SplitMode = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    mmap: bool = True
    mlock: bool = False

    @classmethod
    def of(cls, settings: EngineSettings) -> Placement:
        """Return what the settings say."""
        experts = [(EXPERTS if settings.cpu_moe else experts_of(settings.n_cpu_moe or 0), CPU)]
        return cls(
            gpu_layers=settings.gpu_layers,
            overrides=(*overrides(settings.override_tensor), *(experts if settings.cpu_moe or settings.n_cpu_moe else ())),
            split_mode=settings.split_mode,
            tensor_split=shares(settings.tensor_split),
            main_gpu=settings.main_gpu or 0,
            mmap=settings.mmap,
            mlock=settings.mlock,
        )

    def of_draft(self) -> Placement:
        """Return the placement of the draft model: all of it on the GPU if that is used, on the same GPUs."""
        return dataclasses.replace(self, gpu_layers=-1 if self.gpu_layers else 0, overrides=())

    def fill(self, params: Any) -> list[Any]:
        """Write this into llama_model_params; return what must outlive the model. Raises ConfigError for a device that is not
        there."""
        params.n_gpu_layers = self.gpu_layers
        params.split_mode, params.main_gpu = SPLIT_MODES[self.split_mode], self.main_gpu
        params.load_mode = LOAD_MODES[self.mmap, self.mlock]
        kept: list[Any] = []
        if self.tensor_split:
            split = (ctypes.c_float * llama_cpp.llama_max_devices())(*self.tensor_split)
            params.tensor_split = ctypes.cast(split, ctypes.POINTER(ctypes.c_float))
            kept.append(split)
        if self.overrides:
            pairs = [_Override(pattern.encode(), devices.device(name).buffer_type) for pattern, name in self.overrides]
            listed = (_Override * (len(pairs) + 1))(*pairs)  # the last one is empty
            params.tensor_buft_overrides = ctypes.cast(listed, ctypes.c_void_p)
            kept.append(listed)
        return kept


def fill_positions(params: Any, settings: EngineSettings) -> None:
    """Write the settings of rope and YaRN into llama_context_params; those left open are the model's own."""
    if settings.rope_scaling is not None:
        params.rope_scaling_type = ROPE_SCALINGS[settings.rope_scaling]
    if settings.rope_scale is not None:
        params.rope_freq_scale = 1 / settings.rope_scale
    names = ("rope_freq_base", "rope_freq_scale", "yarn_orig_ctx", "yarn_ext_factor", "yarn_attn_factor")
    for name in (*names, "yarn_beta_fast", "yarn_beta_slow"):
        if (value := getattr(settings, name)) is not None:
            setattr(params, name, value)


_numa: list[Numa] = []
_lock = threading.Lock()


def set_numa(numa: Numa | None) -> None:
    """Arrange the threads of this process (llama_numa_init), which llama.cpp does once. Raises ConfigError for another
    arrangement later."""
    with _lock:
        if numa is not None and not _numa:
            llama_cpp.llama_numa_init(NUMAS[numa])
            _numa.append(numa)
        if numa is not None and _numa[0] != numa:
            raise ConfigError(f"numa: this process computes with {_numa[0]} already; {numa} needs a new one")
