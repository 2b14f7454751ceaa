"""Measures both KV layouts with bare llama.cpp and says what follows for --kv-layout: a stage of scripts/gpu-check."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from gpulib import report
from gpulib.measure import FULL, QUICK, Measurement, OutOfTime, Plan, build
from locallab import hardware
from locallab.engine import layout, llama
from locallab.engine.state_format import UnknownFormat
from locallab.errors import LocalLabError


def measure(path: Path, gpu_layers: int, threads: int, plan: Plan, output: Path) -> str | None:
    """Print what could be measured and write it to `output` as JSON; return why that is not all."""
    started, problem = time.monotonic(), None
    model = llama.Model(path, gpu_layers)
    measurement = Measurement(model, plan, threads, started)
    try:
        measurement.run()
    except OutOfTime:
        problem = f"{plan.seconds:.0f} s were not enough for all rows"
    except (LocalLabError, UnknownFormat) as error:
        problem = str(error)
    follows = report.constants(measurement.rows, layout.GAP)
    print("\n".join(f"- {name}: {value}" for name, value in machine(model, gpu_layers, threads).items()))
    print("- medians; what is compared takes turns; in parentheses the share of computing the same tokens\n")
    print(report.table(measurement.rows) + "\n")
    print("\n".join(f"- {line}" for line in follows))
    rows = [{**dataclasses.asdict(row), "ms": dict(row.ms)} for row in measurement.rows]
    output.write_text(json.dumps({"rows": rows, "follows": follows}, indent=1))
    model.close()
    return problem


def machine(model: llama.Model, gpu_layers: int, threads: int) -> dict[str, str]:
    """Return the model, the machine and the build in words."""
    cards = [f"{gpu['name']}, driver {gpu['driver']}" for gpu in hardware.gpus()] or ["not one of NVIDIA's"]
    layers = "all" if gpu_layers < 0 else gpu_layers
    cpu = hardware.cpu()
    return {
        "model": f"{model.description}, {model.size_bytes / 1e9:.2f} GB",
        "GPU": f"{'; '.join(cards)}; layers on it: {layers}" if llama.supports_gpu() else "none that this llama.cpp can use",
        "CPU": f"{cpu['model']}, {threads} threads on {cpu['physical_cores']} cores",
        "build": build(),
    }


def main(argv: list[str]) -> int:
    """Measure; exit code 1 when that was not possible in full."""
    parser = argparse.ArgumentParser(prog="gpulib.layouts")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gpu-layers", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    plan = QUICK if args.quick else FULL
    plan = dataclasses.replace(plan, seconds=min(plan.seconds, args.seconds))
    try:
        problem = measure(args.model, args.gpu_layers, args.threads, plan, args.output)
    except LocalLabError as error:
        problem = str(error)
    if problem:
        print(f"layouts: {problem}", file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
