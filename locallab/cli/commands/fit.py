"""`locallab fit`: what of a model fits this machine, and how it would be loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from locallab import settings
from locallab.cli.settings_options import Layer, layers, options
from locallab.errors import LocalLabError
from locallab.settings import EngineSettings, KvType, ServerSettings

if TYPE_CHECKING:
    from rich.table import Table

    from locallab.fit import Fit, Machine, Shape
    from locallab.models import ModelSpec

NAMES = ("context", "gpu_layers", "kv_type", "parallel")
CONTEXTS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
KV_TYPES: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")


@click.command("fit")
@click.argument("model")
@options(EngineSettings, only=NAMES)
@options(ServerSettings, only=("registry",))
@click.option("--json", "as_json", is_flag=True, help="print one object: model, machine, table, chosen")
def command(model: str, as_json: bool, registry: str | None, **flags: Any) -> int:
    """Show what of MODEL fits this machine: an id of the registry, hf:owner/repo:Q4_K_M, or the path of a .gguf file.

    A model that is not on disk is judged by its size, which is less exact. Exit status 1 if it does not fit at all.
    """
    from locallab.fit import Machine, fit_model, model_shape
    from locallab.models import Registry, Store

    server = settings.resolve(ServerSettings, *layers(ServerSettings, {"registry": registry}))
    spec = Registry.discover(server.registry).resolve(model)
    fixed = layers(EngineSettings, flags)
    path = Store().path(spec)
    machine = Machine.here(_gpu_build())
    shape, chosen = model_shape(spec, path), fit_model(spec, path, machine, fixed)
    cells = list(_cells(spec, path, machine, fixed, chosen, shape))
    if as_json:
        click.echo(json.dumps(_report(spec, path, machine, shape, chosen, cells)))
    else:
        _print(spec, path, machine, shape, chosen, cells)
    return 0 if chosen.fits else 1


def _gpu_build() -> bool:
    try:
        from locallab.engine.llama import supports_gpu
    except (OSError, RuntimeError) as error:
        raise LocalLabError(f"llama.cpp cannot be loaded: {error}; see locallab doctor") from error
    return supports_gpu()


def _cells(
    spec: ModelSpec, path: Path | None, machine: Machine, fixed: Sequence[Layer], chosen: Fit, shape: Shape
) -> Iterator[Fit]:
    """The table: how the model is loaded with each context and each KV type."""
    from locallab.fit import Wishes, choose

    most = shape.n_ctx_train or max(32768, chosen.load.context)
    given = settings.given(EngineSettings, ("", spec.settings), *fixed)
    for context in sorted({*(each for each in CONTEXTS if each <= most), chosen.load.context}):
        for kv_type in KV_TYPES:
            wishes = Wishes.of({**given, "context": context, "kv_type": kv_type})
            yield choose(shape, machine, wishes, approximate=path is None)


def _report(
    spec: ModelSpec, path: Path | None, machine: Machine, shape: Shape, chosen: Fit, cells: Sequence[Fit]
) -> dict[str, Any]:
    return {
        "model": spec.id,
        "path": path and str(path),
        "approximate": chosen.approximate,
        "machine": {
            "ram_bytes": machine.ram,
            "gpus": [{"name": gpu.name, "free_bytes": gpu.free} for gpu in machine.gpus],
            "threads": machine.threads,
            "gpu_build": machine.gpu_build,
        },
        "weights_bytes": shape.weights,
        "layers": len(shape.layers) + 1,
        "context_trained": shape.n_ctx_train or None,
        "kv_bytes_per_token": {kv_type: shape.kv_bytes(kv_type) for kv_type in get_args(KvType)},
        "table": [_entry(cell) for cell in cells],
        "chosen": {**_entry(chosen), "cache_ram_mib": chosen.cache_ram_mib, "reason": chosen.reason},
    }


def _entry(fit: Fit) -> dict[str, Any]:
    needs = fit.estimate
    return {
        "fits": fit.fits,
        **{name: getattr(fit.load, name) for name in (*NAMES, "kv_tokens")},
        **{f"{name}_bytes": getattr(needs, name) for name in ("weights", "kv", "state", "compute", "gpu", "ram", "total")},
    }


def _print(spec: ModelSpec, path: Path | None, machine: Machine, shape: Shape, chosen: Fit, cells: Sequence[Fit]) -> None:
    from rich.console import Console

    from locallab.units import binary_bytes

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(f"[bold]{spec.id}[/]: {spec.description}", markup=True)
    console.print(str(path) if path else "not on disk: judged by its size, approximately", markup=False)
    trained = f", trained with a context of {shape.n_ctx_train:,}" if shape.n_ctx_train else ""
    console.print(
        f"weights {binary_bytes(shape.weights)}, {len(shape.layers) + 1} layers with the output{trained}", markup=False
    )
    gpus = ", ".join(
        f"{gpu.name} {binary_bytes(gpu.free) if gpu.free is not None else 'sharing the RAM'}" for gpu in machine.gpus
    )
    console.print(f"free here: {binary_bytes(machine.ram)} of RAM; {gpus or 'no GPU'}", markup=False)
    console.print(_table(shape, cells))
    console.print(f"{'chosen' if chosen.fits else 'no way'}: {chosen.reason}", markup=False)


def _table(shape: Shape, cells: Sequence[Fit]) -> Table:
    """A row for each context, a column for each KV type."""
    from rich.table import Table

    caption = "KV cache of one such request / all memory / layers on the GPU, or the CPU"
    table = Table("context", *(f"KV {kv_type}" for kv_type in KV_TYPES), caption=caption, caption_justify="left")
    for index in range(0, len(cells), len(KV_TYPES)):
        row = cells[index : index + len(KV_TYPES)]
        table.add_row(f"{row[0].load.context:,}", *(_cell(shape, cell) for cell in row))
    return table


def _cell(shape: Shape, fit: Fit) -> str:
    from locallab.fit.estimates import layers_on_gpu
    from locallab.units import binary_bytes

    kv = binary_bytes(shape.kv_bytes(fit.load.kv_type) * fit.load.context)
    on_gpu = layers_on_gpu(shape, fit.load.gpu_layers) + bool(fit.load.gpu_layers)
    where = "no" if not fit.fits else f"GPU {on_gpu}" if on_gpu else "CPU"
    return f"[{'green' if fit.fits else 'red'}]{kv} / {binary_bytes(fit.estimate.total)} / {where}[/]"
