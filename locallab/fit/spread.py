"""How llama.cpp spreads the layers of a model over several GPUs (llama_model_base::load_tensors): by their number. Pure.

With experts in RAM the first layers are lighter than the last, so the GPU with the last ones may be full while others are not.
"""

from __future__ import annotations

import bisect
import itertools

from locallab.fit.estimates import Load, kv_bytes, layers_on_gpu, state_bytes, step_bytes, weights_of_layers
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape


def overfull(shape: Shape, load: Load, machine: Machine) -> bool:
    """Return whether one of several GPUs gets more than it has room for. Only experts in RAM make layers differ that much; else
    the estimate's space for a layer on each GPU is enough."""
    usable = machine.usable_each
    if len(usable) < 2 or not load.n_cpu_moe or not load.gpu_layers or machine.shared:
        return False
    free = [gpu.free or 0 for gpu in machine.gpus]
    ends = list(itertools.accumulate([*machine.split, *[0.0] * len(usable)][: len(usable)] if any(machine.split) else free))
    if not ends[-1]:
        return False
    count = layers_on_gpu(shape, load.gpu_layers)
    first = len(shape.layers) - count
    takes = [0] * len(usable)
    for index, (layer, (on, _)) in enumerate(zip(shape.layers, weights_of_layers(shape, load), strict=True)):
        if index >= first:
            own = on.all + kv_bytes(shape, load, [layer]) + state_bytes(shape, load, [layer])
            takes[bisect.bisect_right(ends, ends[-1] * (index - first) / (count + 1))] += own
    takes[bisect.bisect_right(ends, ends[-1] * count / (count + 1))] += shape.output + shape.rest
    buffers = step_bytes(shape, load)
    return any(taken and taken + buffers > room for taken, room in zip(takes, usable, strict=True))
