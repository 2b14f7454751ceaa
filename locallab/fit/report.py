"""The report on how a model fits a machine: the chosen way to load it, and a table of others. Loads nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from locallab.errors import ModelLoadError
from locallab.fit.choice import Fit, Wishes, choose
from locallab.fit.estimates import kv_cache_of
from locallab.fit.fit_model import Layers, draft_shape, fit_model, model_shape
from locallab.fit.machine import Machine
from locallab.fit.model_shape import Shape
from locallab.models import gguf
from locallab.models.drafts import draft_of
from locallab.models.registry import Registry
from locallab.models.spec import ModelSpec
from locallab.models.store import Store
from locallab.placement_settings import overrides
from locallab.settings import EngineSettings, KvType, configured, resolve

PLACE = ("context", "gpu_layers", "n_cpu_moe", "kv_type", "kv_layout", "parallel")
"""Settings of a load that a report names."""
CONTEXTS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
KV_TYPES: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The fit of a model on a machine: the chosen way to load it, and the cells of a table of alternatives, in rows of
    KV_TYPES. `path` None: it is estimated from its size."""

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
            "machine": described(machine),
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


def described(machine: Machine) -> dict[str, Any]:
    """Return what models may take, in values of JSON."""
    return {
        "ram_bytes": machine.ram,
        "gpus": [{"name": gpu.name, "free_bytes": gpu.free} for gpu in machine.gpus],
        "threads": machine.threads,
        "gpu_build": machine.gpu_build,
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Fitting:
    """How the models of a registry fit a machine, with the settings configured by the environment and the flags.

    A model whose file cannot be read is estimated from its size, as one that is not on disk: llama.cpp says best what is wrong.
    """

    registry: Registry
    store: Store
    machine: Machine
    layers: Layers = ()

    @property
    def room(self) -> dict[str, Any]:
        """What models may take here, in values of JSON."""
        return described(self.machine)

    def header(self, spec: ModelSpec) -> gguf.Header | None:
        """Return the header of the model's file, None while it is not on disk. Raises ModelLoadError."""
        path = self.store.path(spec)
        return gguf.read(path) if path else None

    def fit(self, spec: ModelSpec) -> Fit:
        """Choose how to load the model. Raises SourceError if nothing tells its size, UnknownModel, ConfigError."""
        spec, header = self._read(spec)
        return fit_model(spec, header, self.machine, self.layers, self._draft(spec))

    def report(self, spec: ModelSpec) -> Report:
        """Choose how to load the model, and report that with alternatives. Raises as `fit`."""
        spec, header = self._read(spec)
        beside, options = self._draft(spec), self.options(spec)
        shape = model_shape(spec, header, beside, overrides(options.get("override_tensor")))
        chosen, machine = fit_model(spec, header, self.machine, self.layers, beside), self.machine.with_gpus(options)
        cells = list(_cells(options, machine, chosen, shape))
        return Report(spec, header.path if header else None, machine, shape, chosen, cells)

    def options(self, spec: ModelSpec) -> Mapping[str, Any]:
        """Return the settings that somebody has configured for the model. Raises ConfigError."""
        return configured(EngineSettings, *self._configured(spec))

    def _read(self, spec: ModelSpec) -> tuple[ModelSpec, gguf.Header | None]:
        """Return the model with the size of its file, and the file's header if there is one."""
        try:
            return spec, self.header(spec)
        except ModelLoadError:
            return msgspec.structs.replace(spec, size=self.store.size(spec)), None

    def _configured(self, spec: ModelSpec) -> Layers:
        return [(f"models.yaml: {spec.id}", spec.settings), *self.layers]

    def _draft(self, spec: ModelSpec) -> Shape | None:
        draft = draft_of(spec, resolve(EngineSettings, *self._configured(spec)), self.registry)
        return draft_shape(draft, self.store.path(draft.spec, draft.part)) if draft else None


def _cells(options: Mapping[str, Any], machine: Machine, chosen: Fit, shape: Shape) -> Iterator[Fit]:
    """Yield the fit for each context and each KV type, in rows of KV_TYPES."""
    largest = shape.n_ctx_train or max(32768, chosen.load.context)
    for context in sorted({*(each for each in CONTEXTS if each <= largest), chosen.load.context}):
        for kv_type in KV_TYPES:
            wishes = Wishes.of({**options, "context": context, "kv_type": kv_type, "kv_type_k": None, "kv_type_v": None})
            yield choose(shape, machine, wishes, approximate=chosen.approximate)


def _entry(shape: Shape, fit: Fit) -> dict[str, Any]:
    needs = fit.estimate
    return {
        "fits": fit.fits,
        **{name: getattr(fit.load, name) for name in (*PLACE, "kv_tokens")},
        "requests_at_once": kv_cache_of(shape, fit.load).parallel,
        **{f"{name}_bytes": getattr(needs, name) for name in ("weights", "kv", "state", "compute", "gpu", "ram", "total")},
    }
