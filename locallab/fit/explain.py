"""The explanation of a fit in one line: how the model is loaded, and what did not fit. Pure."""

from __future__ import annotations

from locallab.fit.estimates import Estimate, Load, kv_cache_of
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape
from locallab.fit.speed import Speed
from locallab.units import binary_bytes

Tried = tuple[Load, Estimate]


def reason(shape: Shape, machine: Machine, fits: bool, chosen: Tried, first: Tried, speed: Speed) -> str:
    """Explain the choice. `chosen` is the one made, or the last to be rejected; `first` the preferred one; `speed` is what to
    expect of the choice."""
    load, needs = chosen
    if not fits:
        return f"does not fit: even {_described(shape, load)} would take {_takes(needs)}; {_usable(machine)} can be used"
    text = f"{_described(shape, load)}: takes {_takes(needs)}; {_usable(machine)} can be used"
    if load != first[0]:
        wanted = first[0]
        differences = [
            *([place(shape, wanted)] if place(shape, wanted) != place(shape, load) else []),
            *([f"context {wanted.context:,}"] if wanted.context != load.context else []),
            *([_kv(shape, wanted)] if _kv(shape, wanted) != _kv(shape, load) else []),
            *([_requests(shape, wanted)] if _requests(shape, wanted) != _requests(shape, load) else []),
        ]
        text += f"; {', '.join(differences) or f'a KV pool of {wanted.kv_tokens:,} tokens'} would take {_takes(first[1])}"
    if not shape.embeds:
        text += f"; about {rate(speed.tokens_per_second)} for one request, by memory bandwidth"
    if machine.gpus and not machine.gpu_build:
        text += "; the GPU is not used, because this llama.cpp was built without CUDA"
    return text


def place(shape: Shape, load: Load) -> str:
    """Describe the place of the layers."""
    total, gpu_layers = len(shape.layers) + 1, load.gpu_layers
    if not gpu_layers:
        return "on the CPU"
    on_gpu = f"all {total} layers on the GPU" if not 0 <= gpu_layers < total else f"{gpu_layers} of {total} layers on the GPU"
    experts = min(load.n_cpu_moe, len(shape.layers)) if shape.has_experts else 0
    return f"{on_gpu}, the experts of {experts} in RAM" if experts else on_gpu


def rate(tokens_per_second: float) -> str:
    """Describe a speed."""
    return f"{tokens_per_second:,.{0 if tokens_per_second >= 10 else 1}f} tokens/s"


def _described(shape: Shape, load: Load) -> str:
    draft = ", with its draft model" if shape.draft else ""
    return f"{place(shape, load)}, context {load.context:,}, {_kv(shape, load)}, {_requests(shape, load)}{draft}"


def _kv(shape: Shape, load: Load) -> str:
    streams, types = kv_cache_of(shape, load).streams, "/".join(dict.fromkeys(load.kv_types))
    layout = "one pool" if load.kv_layout == "unified" else "one stream" if streams == 1 else f"{streams} streams"
    return f"KV {types}{f' in {layout}' if load.parallel > 1 and not shape.embeds else ''}"


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
