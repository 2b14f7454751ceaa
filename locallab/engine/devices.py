"""The devices that llama.cpp can use, by their names (ggml_backend_dev_* of ggml-backend.h)."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Literal

from llama_cpp import _ggml

from locallab.errors import ConfigError

Kind = Literal["cpu", "gpu", "integrated", "accelerator", "several"]
KINDS: tuple[Kind, ...] = ("cpu", "gpu", "integrated", "accelerator", "several")
"""In the order of enum ggml_backend_dev_type."""


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """A device: "CPU" or "CUDA0", what it is, its kind, and the buffer type (ggml_backend_buffer_type_t) of its memory."""

    name: str
    description: str
    kind: Kind
    buffer_type: int


def devices() -> tuple[Device, ...]:
    """Return the devices that can hold tensors, in llama.cpp's order."""
    count = _function("ggml_backend_dev_count", ctypes.c_size_t)()
    listed = [_device(_function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)(index)) for index in range(count)]
    return tuple(device for device in listed if device.kind in ("cpu", "gpu", "integrated"))


def gpus() -> tuple[Device, ...]:
    """Return the GPUs that llama.cpp spreads a model over: integrated ones only where there are no others."""
    found = devices()
    return tuple(each for each in found if each.kind == "gpu") or tuple(each for each in found if each.kind == "integrated")


def device(name: str) -> Device:
    """Return the device of this name. Raises ConfigError that lists those there are."""
    found = {each.name: each for each in devices()}
    if name not in found:
        raise ConfigError(f"override_tensor: there is no device {name}; there are {', '.join(found)}")
    return found[name]


def _device(handle: int) -> Device:
    name, description = (
        _function(f"ggml_backend_dev_{what}", ctypes.c_char_p, ctypes.c_void_p)(handle) for what in ("name", "description")
    )
    kind = _function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)(handle)
    buffer_type = _function("ggml_backend_dev_buffer_type", ctypes.c_void_p, ctypes.c_void_p)(handle)
    return Device(name.decode("utf-8", "replace"), description.decode("utf-8", "replace"), KINDS[kind], buffer_type or 0)


def _function(name: str, result: type, *arguments: type) -> ctypes._NamedFuncPointer:
    function = getattr(_ggml.libggml, name)
    function.restype, function.argtypes = result, list(arguments)
    return function  # type: ignore[no-any-return]
