"""Measures where the time of a step goes in an engine of ours, without HTTP: a stage of scripts/gpu-check.

What runs is a batch of equally long requests; counted are the steps in which all of them decode.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from locallab import hardware
from locallab.engine import SamplingParams, TextEngine, TokenEvent, llama
from locallab.errors import LocalLabError
from locallab.fit import Machine, fit_model, fitted
from locallab.models import adhoc

PROMPT = 64
"""Tokens of each prompt; all differ."""

RUNS = (("on", (True,)), ("on", (False,)), ("off", (True, False)))
"""--device-sampling of each engine, and whether its requests are greedy: an engine that has both samples on the host."""

PATIENCE = 120.0
"""Seconds to wait for the requests of a row."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """What an engine has done up to a time."""

    at: float
    steps: int
    tokens: int
    phases: Mapping[Any, float]

    @classmethod
    def of(cls, engine: TextEngine) -> Mark:
        """Return what `engine` has done by now; exact in the engine's thread."""
        totals = engine.totals
        return cls(time.perf_counter(), totals.steps, totals.completion_tokens, dict(totals.phases))


class Batch:
    """Requests that run together. The listeners run in the engine's thread, between two steps."""

    def __init__(self, engine: TextEngine, count: int) -> None:
        self._engine, self._count = engine, count
        self._begun = 0
        self._left = count
        self.started = time.perf_counter()
        self.first: Mark | None = None
        self.last: Mark | None = None
        self.error: Exception | None = None
        self.done = threading.Event()

    def listener(self) -> Any:
        """Return the listener of one request."""
        begun = False

        def listen(event: TokenEvent) -> None:
            nonlocal begun
            if event.token_ids and not begun:
                begun = True
                self._begun += 1
                if self._begun == self._count and self.last is None:
                    self.first = Mark.of(self._engine)
            if event.finish_reason:
                self.last = self.last or Mark.of(self._engine)
                self.error = self.error or event.error
                self._left -= 1
                if not self._left:
                    self.done.set()

        return listen


def row(engine: TextEngine, count: int, answer: int, greedy: bool = True) -> dict[str, Any]:
    """Run `count` requests of `answer` tokens at once; return the figures of a step in which all decode. Raises
    LocalLabError, TimeoutError."""
    batch = Batch(engine, count)
    temperature = 0.0 if greedy else 1.0
    params = SamplingParams(temperature=temperature, ignore_eos=True, max_tokens=answer)
    for index in range(count):
        prompt = [(7 * (index + 1) * place + count) % engine.info.n_vocab for place in range(1, PROMPT + 1)]
        engine.submit(prompt, params, batch.listener())
    if not batch.done.wait(PATIENCE):
        raise TimeoutError(f"{count} requests took more than {PATIENCE:.0f} s")
    if batch.error is not None:
        raise batch.error
    found: dict[str, Any] = {"requests": count, "sampling": "greedy" if greedy else "temperature 1"}
    first, last = batch.first, batch.last
    if first is None or last is None or last.steps - first.steps < 2:
        return {**found, "note": "they did not all decode at once: fewer places, or too short answers"}
    steps = last.steps - first.steps
    phases = {name: 1000 * (last.phases[name] - first.phases[name]) / steps for name in last.phases}
    return {
        **found,
        "prompts_ms": 1000 * (first.at - batch.started),
        "step_ms": 1000 * (last.at - first.at) / steps,
        "phases_ms": phases,
        "tokens_per_s": (last.tokens - first.tokens) / (last.at - first.at),
    }


def chosen(engine: TextEngine, settings: Any) -> dict[str, Any]:
    """Return how the engine is loaded."""
    info = engine.info
    return {
        "device": info.device,
        "kv_layout": info.kv_layout,
        "kv_type": settings.kv_type,
        "kv_tokens": info.kv_tokens,
        "context": info.context,
        "parallel": info.parallel,
        "ubatch": settings.ubatch,
        "gpu_layers": settings.gpu_layers,
        "cache_ram_mib": settings.cache_ram_mib,
    }


def used() -> dict[str, float]:
    """Return the MiB of RAM that this process takes, and of GPU memory that all do."""
    gpus = hardware.gpus()
    known = [gpu for gpu in gpus if gpu["total_bytes"]]
    lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else []
    resident = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)
    return {"ram_mib": resident, "gpu_mib": sum(gpu["total_bytes"] - gpu["free_bytes"] for gpu in known) / 2**20}


def main(argv: list[str]) -> int:
    """Measure; exit code 1 when that was not possible in full."""
    parser = argparse.ArgumentParser(prog="gpulib.steps")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gpu-layers", type=int)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--counts", type=lambda text: [int(each) for each in text.split(",")], required=True)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    results: dict[str, Any] = {"rows": []}
    flags = {"threads": args.threads, **({} if args.gpu_layers is None else {"gpu_layers": args.gpu_layers})}
    try:
        before, spec = used(), adhoc.spec(str(args.model))
        layers = [("gpu-check", flags)]
        fit = fit_model(spec, args.model, Machine.here(llama.supports_gpu()), layers)
        for sampling, kinds in RUNS:
            options = {"device_sampling": sampling, "drafts": False}
            settings = fitted(spec, fit, [*layers, ("gpu-check", options)])
            began = time.perf_counter()
            with contextlib.closing(TextEngine(args.model, settings)) as engine:
                results |= {"why": fit.reason, "chosen": chosen(engine, settings), "load_s": time.perf_counter() - began}
                for count, greedy in itertools.product(args.counts, kinds):
                    found = row(engine, count, args.answer, greedy)
                    results["rows"].append({**found, "device_sampling": sampling})
                    results["memory"] = {"before": before, "after": used()}
                    args.output.write_text(json.dumps(results, indent=1))
    except (LocalLabError, TimeoutError, OSError) as error:
        print(f"steps: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
