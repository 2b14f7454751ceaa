"""The expected tokens per second of one answer: a token reads the active weights once, each from the memory it is in. Pure."""

from __future__ import annotations

import dataclasses

from locallab.fit.bandwidth import OTHER_GPU, REACHED, THREAD, USUAL_RAM, gpu_bandwidth
from locallab.fit.estimates import Load, weights_of_layers
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second for one request whose context is short, and what they come from: the bytes that a token reads from each
    memory, and the bytes per second of each. `gpu_known`, `ram_measured`: these are no mere assumptions. `threads` is their
    number if they, not the RAM, are the limit, else 0."""

    tokens_per_second: float
    gpu_bytes: int
    ram_bytes: int
    gpu_bandwidth: int
    ram_bandwidth: int
    gpu_known: bool
    ram_measured: bool
    threads: int = 0

    @property
    def described(self) -> str:
        """The figures in a line."""
        gpu = f"{self.gpu_bandwidth / 1e9:.0f} GB/s of the GPU ({'as its maker states' if self.gpu_known else 'assumed'})"
        ram = f"{self.ram_bandwidth / 1e9:.0f} GB/s of the RAM ({'measured' if self.ram_measured else 'assumed'})"
        if self.threads:
            ram = f"{self.ram_bandwidth / 1e9:.0f} GB/s that {self.threads} CPU threads compute with"
        return " and ".join([*([gpu] if self.gpu_bytes else []), *([ram] if self.ram_bytes else [])])


def expected(shape: Shape, load: Load, machine: Machine) -> Speed:
    """Return the expected speed of a model of this shape, loaded like this, without drafts. Several GPUs compute one behind the
    other; the slowest counts."""
    share = shape.share_of_experts
    gpu, ram = 0.0, 0.0
    for on, inside in weights_of_layers(shape, load):
        gpu += on.dense + share * on.experts
        ram += inside.dense + share * inside.experts
    if load.gpu_layers and not shape.output_in_ram:
        gpu += shape.output
    else:
        ram += shape.output
    of_ram = machine.ram_bandwidth or USUAL_RAM
    other = of_ram if machine.shared else OTHER_GPU
    known = [gpu_bandwidth(each.name) for each in machine.gpus]
    of_gpu = min((each or other for each in known), default=other)
    of_cpu = min(of_ram, machine.threads * THREAD)
    seconds = gpu / (REACHED * of_gpu) + ram / of_cpu
    return Speed(
        tokens_per_second=1 / seconds if seconds else 0.0,
        gpu_bytes=int(gpu),
        ram_bytes=int(ram),
        gpu_bandwidth=of_gpu,
        ram_bandwidth=of_cpu,
        gpu_known=all(known),
        ram_measured=machine.ram_bandwidth is not None,
        threads=machine.threads if of_cpu < of_ram else 0,
    )
