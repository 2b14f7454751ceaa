"""`locallab fit`: how a model fits this machine, and how it would be loaded."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from locallab import settings
from locallab.cli.llama_library import loading_llama
from locallab.cli.settings_options import layers, options, server_settings
from locallab.settings import EngineSettings, KvType, ServerSettings

if TYPE_CHECKING:
    from locallab.fit import Fit, Machine, Shape
    from locallab.models import ModelSpec

NAMES = ("context", "gpu_layers", "n_cpu_moe", "kv_type", "kv_layout", "parallel")
PLACES = ("cpu_moe", "override_tensor", "split_mode", "tensor_split", "main_gpu", "kv_type_k", "kv_type_v")
CONTEXTS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
KV_TYPES: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")


@click.command("fit")
@click.argument("model")
@options(EngineSettings, only=(*NAMES, *PLACES, "draft_model"))
@options(ServerSettings, only=("registry",))
@click.option("--json", "as_json", is_flag=True, help="print an object of model, machine, table and chosen")
def command(model: str, as_json: bool, registry: str | None, **flags: Any) -> int:
    """Show how MODEL fits this machine: a registry id, hf:owner/repo:Q4_K_M, or the path of a .gguf file.

    A model that is not on disk is estimated from its size, which is less exact. Exit status 1 if it does not fit at all.
    """
    from locallab.fit import Machine, check_placement, draft_shape, fit_model, model_shape
    from locallab.models import Registry, Store, gguf
    from locallab.models.drafts import draft_of
    from locallab.placement_settings import overrides

    known = Registry.discover(server_settings(registry=registry).registry)
    spec = known.resolve(model)
    fixed = layers(EngineSettings, flags)
    path = Store().path(spec)
    draft = draft_of(spec, settings.resolve(EngineSettings, ("", spec.settings), *fixed), known)
    beside = draft_shape(draft, Store().path(draft.spec, draft.part)) if draft else None
    with loading_llama():
        from locallab.engine import devices
        from locallab.engine.llama import supports_gpu
    configured = settings.configured(EngineSettings, ("", spec.settings), *fixed)
    machine = Machine.here(supports_gpu()).with_gpus(configured)
    header = gguf.read(path) if path else None
    check_placement(configured, header, [each.name for each in devices.devices()], [each.name for each in devices.gpus()])
    shape = model_shape(spec, header, beside, overrides(configured.get("override_tensor")))
    chosen = fit_model(spec, header, machine, fixed, beside)
    report = Report(spec, path, machine, shape, chosen, list(_cells(configured, path, machine, chosen, shape)))
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        report.print()
    return 0 if chosen.fits else 1


def _cells(configured: Mapping[str, Any], path: Path | None, machine: Machine, chosen: Fit, shape: Shape) -> Iterator[Fit]:
    """Yield the fit for each context and each KV type, in rows of KV_TYPES."""
    from locallab.fit import Wishes, choose

    largest = shape.n_ctx_train or max(32768, chosen.load.context)
    for context in sorted({*(each for each in CONTEXTS if each <= largest), chosen.load.context}):
        for kv_type in KV_TYPES:
            wishes = Wishes.of({**configured, "context": context, "kv_type": kv_type, "kv_type_k": None, "kv_type_v": None})
            yield choose(shape, machine, wishes, approximate=path is None)


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The fit of a model on a machine: the chosen way to load it, and the cells of a table of alternatives."""

    spec: ModelSpec
    path: Path | None
    machine: Machine
    shape: Shape
    chosen: Fit
    cells: Sequence[Fit]

    def as_dict(self) -> dict[str, Any]:
        """Return the report in values of JSON."""
        machine, shape, chosen = self.machine, self.shape, self.chosen
        return {
            "model": self.spec.id,
            "path": self.path and str(self.path),
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
            "table": [_entry(shape, cell) for cell in self.cells],
            "chosen": {
                **_entry(shape, chosen),
                "cache_ram_mib": chosen.cache_ram_mib,
                "speed": None if shape.embeds else dataclasses.asdict(chosen.speed),
                "reason": chosen.reason,
            },
        }

    def print(self) -> None:
        """Print the report for people."""
        from rich.console import Console
        from rich.table import Table

        from locallab.units import binary_bytes

        machine, shape, chosen = self.machine, self.shape, self.chosen
        console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        console.print(f"[bold]{self.spec.id}[/]: {self.spec.description}", markup=True)
        console.print(str(self.path) if self.path else "not on disk: estimated from its size", markup=False)
        trained = f", trained with a context of {shape.n_ctx_train:,}" if shape.n_ctx_train else ""
        n_layers = len(shape.layers) + 1
        console.print(f"weights {binary_bytes(shape.weights)}, {n_layers} layers with the output{trained}", markup=False)
        free = [(gpu.name, "sharing the RAM" if gpu.free is None else binary_bytes(gpu.free)) for gpu in machine.gpus]
        gpus = ", ".join(map(" ".join, free)) or "no GPU"
        console.print(f"free here: {binary_bytes(machine.ram)} of RAM; {gpus}", markup=False)
        caption = "KV cache of one such request / total memory / layers on the GPU, or the CPU"
        table = Table("context", *(f"KV {kv_type}" for kv_type in KV_TYPES), caption=caption, caption_justify="left")
        for index in range(0, len(self.cells), len(KV_TYPES)):
            row = self.cells[index : index + len(KV_TYPES)]
            table.add_row(f"{row[0].load.context:,}", *(_cell(shape, cell) for cell in row))
        console.print(table)
        console.print(f"chosen: {chosen.reason}" if chosen.fits else chosen.reason, markup=False)
        if not shape.embeds:
            console.print(f"the speed comes from {chosen.speed.described}", markup=False)


def _entry(shape: Shape, fit: Fit) -> dict[str, Any]:
    from locallab.fit.estimates import kv_cache_of

    needs = fit.estimate
    return {
        "fits": fit.fits,
        **{name: getattr(fit.load, name) for name in (*NAMES, "kv_tokens")},
        "requests_at_once": kv_cache_of(shape, fit.load).parallel,
        **{f"{name}_bytes": getattr(needs, name) for name in ("weights", "kv", "state", "compute", "gpu", "ram", "total")},
    }


def _cell(shape: Shape, fit: Fit) -> str:
    from locallab.fit.estimates import kv_bytes, layers_on_gpu
    from locallab.units import binary_bytes

    one = dataclasses.replace(fit.load, kv_tokens=fit.load.context, parallel=1, kv_layout="streams")
    kv = binary_bytes(kv_bytes(shape, one))
    on_gpu = layers_on_gpu(shape, fit.load.gpu_layers) + bool(fit.load.gpu_layers)
    where = "no" if not fit.fits else f"GPU {on_gpu}" if on_gpu else "CPU"
    return f"[{'green' if fit.fits else 'red'}]{kv} / {binary_bytes(fit.estimate.total)} / {where}[/]"
