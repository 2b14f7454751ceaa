"""`locallab fit`: how a model fits this machine, and how it would be loaded."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from locallab.cli.llama_library import loading_llama
from locallab.cli.settings_options import layers, options, server_settings
from locallab.settings import EngineSettings, ServerSettings

if TYPE_CHECKING:
    from locallab.fit import Fit, Report, Shape

NAMES = ("context", "gpu_layers", "n_cpu_moe", "kv_type", "kv_layout", "parallel")
PLACES = ("cpu_moe", "override_tensor", "split_mode", "tensor_split", "main_gpu", "kv_type_k", "kv_type_v")


@click.command("fit")
@click.argument("model")
@options(EngineSettings, only=(*NAMES, *PLACES, "draft_model"))
@options(ServerSettings, only=("registry",))
@click.option("--json", "as_json", is_flag=True, help="print an object of model, machine, table and chosen")
def command(model: str, as_json: bool, registry: str | None, **flags: Any) -> int:
    """Show how MODEL fits this machine: a registry id, hf:owner/repo:Q4_K_M, or the path of a .gguf file.

    A model that is not on disk is estimated from its size, which is less exact. Exit status 1 if it does not fit at all.
    """
    from locallab.fit import Fitting, Machine, check_placement
    from locallab.models import Registry, Store

    known = Registry.discover(server_settings(registry=registry).registry)
    spec = known.resolve(model)
    with loading_llama():
        from locallab.engine import devices
        from locallab.engine.llama import supports_gpu
    fitting = Fitting(known, Store(), Machine.here(supports_gpu()), layers(EngineSettings, flags))
    names = [each.name for each in devices.devices()], [each.name for each in devices.gpus()]
    check_placement(fitting.options(spec), fitting.header(spec), *names)
    report = fitting.report(spec)
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        _print(report)
    return 0 if report.chosen.fits else 1


def _print(report: Report) -> None:
    """Print the report for people."""
    from rich.console import Console
    from rich.table import Table

    from locallab.fit.report import KV_TYPES
    from locallab.units import binary_bytes

    machine, shape, chosen = report.machine, report.shape, report.chosen
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(f"[bold]{report.spec.id}[/]: {report.spec.description}", markup=True)
    console.print(str(report.path) if report.path else "not on disk: estimated from its size", markup=False)
    trained = f", trained with a context of {shape.n_ctx_train:,}" if shape.n_ctx_train else ""
    n_layers = len(shape.layers) + 1
    console.print(f"weights {binary_bytes(shape.weights)}, {n_layers} layers with the output{trained}", markup=False)
    free = [(gpu.name, "sharing the RAM" if gpu.free is None else binary_bytes(gpu.free)) for gpu in machine.gpus]
    gpus = ", ".join(map(" ".join, free)) or "no GPU"
    console.print(f"free here: {binary_bytes(machine.ram)} of RAM; {gpus}", markup=False)
    caption = "KV cache of one such request / total memory / layers on the GPU, or the CPU"
    table = Table("context", *(f"KV {kv_type}" for kv_type in KV_TYPES), caption=caption, caption_justify="left")
    for index in range(0, len(report.cells), len(KV_TYPES)):
        row = report.cells[index : index + len(KV_TYPES)]
        table.add_row(f"{row[0].load.context:,}", *(_cell(shape, cell) for cell in row))
    console.print(table)
    console.print(f"chosen: {chosen.reason}" if chosen.fits else chosen.reason, markup=False)
    if not shape.embeds:
        console.print(f"the speed comes from {chosen.speed.described}", markup=False)


def _cell(shape: Shape, fit: Fit) -> str:
    from locallab.fit.estimates import kv_bytes, layers_on_gpu
    from locallab.units import binary_bytes

    one = dataclasses.replace(fit.load, kv_tokens=fit.load.context, parallel=1, kv_layout="streams")
    kv = binary_bytes(kv_bytes(shape, one))
    on_gpu = layers_on_gpu(shape, fit.load.gpu_layers) + bool(fit.load.gpu_layers)
    where = "no" if not fit.fits else f"GPU {on_gpu}" if on_gpu else "CPU"
    return f"[{'green' if fit.fits else 'red'}]{kv} / {binary_bytes(fit.estimate.total)} / {where}[/]"
