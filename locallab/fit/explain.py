"""The explanation of a fit in one line: how the model is loaded, and what did not fit. Pure."""

from __future__ import annotations

from locallab.fit.estimates import Estimate, Load, kv_cache_of
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape
from locallab.units import binary_bytes

Tried = tuple[Load, Estimate]


def reason(shape: Shape, machine: Machine, fits: bool, chosen: Tried, first: Tried) -> str:
    """Explain the choice. `chosen` is the one made, or the last to be rejected; `first` the preferred one."""
    load, needs = chosen
    if not fits:
        return f"does not fit: even {_described(shape, load)} would take {_takes(needs)}; {_usable(machine)} can be used"
    text = f"{_described(shape, load)}: takes {_takes(needs)}; {_usable(machine)} can be used"
    if load != first[0]:
        wanted = first[0]
        differences = [
            *([place(shape, wanted.gpu_layers)] if wanted.gpu_layers != load.gpu_layers else []),
            *([f"context {wanted.context:,}"] if wanted.context != load.context else []),
            *([_kv(shape, wanted)] if _kv(shape, wanted) != _kv(shape, load) else []),
            *([_requests(shape, wanted)] if _requests(shape, wanted) != _requests(shape, load) else []),
        ]
        text += f"; {', '.join(differences) or f'a KV pool of {wanted.kv_tokens:,} tokens'} would take {_takes(first[1])}"
    if machine.gpus and not machine.gpu_build:
        text += "; the GPU is not used, because this llama.cpp was built without CUDA"
    return text


def place(shape: Shape, gpu_layers: int) -> str:
    """Describe the place of the layers."""
    total = len(shape.layers) + 1
    if not gpu_layers:
        return "on the CPU"
    return f"all {total} layers on the GPU" if not 0 <= gpu_layers < total else f"{gpu_layers} of {total} layers on the GPU"


def _described(shape: Shape, load: Load) -> str:
    draft = ", with its draft model" if shape.draft else ""
    return f"{place(shape, load.gpu_layers)}, context {load.context:,}, {_kv(shape, load)}, {_requests(shape, load)}{draft}"


def _kv(shape: Shape, load: Load) -> str:
    streams = kv_cache_of(shape, load).streams
    layout = "one pool" if load.kv_layout == "unified" else "one stream" if streams == 1 else f"{streams} streams"
    return f"KV {load.kv_type}{f' in {layout}' if load.parallel > 1 and not shape.embeds else ''}"


def _requests(shape: Shape, load: Load) -> str:
    parallel = kv_cache_of(shape, load).parallel
    return f"{parallel} requests at once" if parallel > 1 else "one request at a time"


def _takes(needs: Estimate) -> str:
    return f"{f'{binary_bytes(needs.gpu)} of GPU memory and ' if needs.gpu else ''}{binary_bytes(needs.ram)} of RAM"


def _usable(machine: Machine) -> str:
    """Describe the free memory less the margins."""
    own = machine.has_gpu and not machine.shared
    return (
        f"{f'{binary_bytes(machine.usable_vram)} of GPU memory and ' if own else ''}{binary_bytes(machine.usable_ram)} of RAM"
    )
