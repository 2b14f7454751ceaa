"""How released models are loaded on usual machines, as a table in a file: `python -m tests.support.released_fits` writes it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from locallab.fit import Fit, Gpu, Machine, Shape, choose, shape
from locallab.models import gguf
from tests.support.released_models import RELEASED

FILE = Path(__file__).parents[1] / "fit" / "released_fits.json"
GIB = 1 << 30
CARDS = {8: "NVIDIA GeForce RTX 4060", 16: "Tesla T4", 24: "NVIDIA GeForce RTX 3090", 80: "NVIDIA H100 80GB HBM3"}
"""GiB and name of a GPU."""

RAMS = (16, 64)
RAM_BANDWIDTH = 40 * 10**9


def machines() -> dict[str, Machine]:
    """Return machines by names such as "16 GB RAM, 8 GB card", all their memory free."""
    found = {f"{ram} GB RAM": Machine(ram * GIB, (), 8, False, RAM_BANDWIDTH) for ram in RAMS}
    for card, name in CARDS.items():
        for ram in RAMS:
            gpus = (Gpu(name, card * GIB),)
            found[f"{ram} GB RAM, {card} GB card"] = Machine(ram * GIB, gpus, 8, True, RAM_BANDWIDTH)
    return found


def shapes(folder: Path) -> dict[str, Shape]:
    """Return the shapes of the released models by the headers of files written to `folder`."""
    return {name: shape(gguf.read(made.write(folder / f"{index}.gguf"))) for index, (name, made) in enumerate(RELEASED.items())}


def summary(model: Shape, fit: Fit) -> str:
    """Describe a fit in a few words."""
    if not fit.fits:
        return "does not fit"
    load, total = fit.load, len(model.layers) + 1
    place = "CPU" if not load.gpu_layers else "GPU" if load.gpu_layers < 0 else f"{load.gpu_layers}/{total} layers on the GPU"
    experts = f", experts of {load.n_cpu_moe} in RAM" if load.gpu_layers and load.n_cpu_moe else ""
    cells = f"{load.context} of {load.kv_tokens} tokens in {load.kv_type}"
    return f"{place}{experts}: {cells}, {fit.speed.tokens_per_second:.3g} tokens/s"


def table(models: Mapping[str, Shape]) -> dict[str, dict[str, str]]:
    """Return the summaries by model and machine."""
    return {
        name: {where: summary(model, choose(model, machine)) for where, machine in machines().items()}
        for name, model in models.items()
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(json.dumps(table(shapes(Path(folder))), indent=1) + "\n")
