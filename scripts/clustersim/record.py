"""Records what the steps of the real engine take: `python -m clustersim.record MODEL.gguf [FILE]`, in scripts/.

An engine with one thread computes prompts and answers of several lengths, several at once, and tells its own cost model what
each step took. All of that is fitted at once here, with relative errors.
"""

from __future__ import annotations

import itertools
import json
import platform
import random
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from locallab.engine import SamplingParams, TextEngine, TokenEvent
from locallab.engine.costs import StepCosts
from locallab.settings import EngineSettings

TOGETHER = (1, 2, 4, 8)
"""Requests that are sent at once."""

LENGTHS = (64, 400, 1200)
"""Tokens of their prompts."""

ANSWER = 24
"""Tokens of each answer."""

ROUNDS = 2

Step = tuple[int, int, float, float, float]
"""Answer tokens, prompt tokens, seconds, cells that the answers see, work of attention of the prompts."""


def record(model: Path, together: Sequence[int] = TOGETHER, lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """Return the fitted costs of an engine with one thread, and how many steps they are from. It gets so many prompts
    `together`, of each of the `lengths`."""
    steps: list[Step] = []
    context, parallel = max(lengths) + 2 * ANSWER, max(together)
    settings = EngineSettings(
        context=context, parallel=parallel, threads=1, gpu_layers=0, cache_tokens=0, cache_ram_mib=0, drafts=False
    )
    engine = TextEngine(model, settings)
    observe = StepCosts.observe

    def noting(self: StepCosts, n_decode: int, n_prompt: int, seconds: float, cells: float = 0, work: float = 0) -> None:
        steps.append((n_decode, n_prompt, seconds, cells, work))
        observe(self, n_decode, n_prompt, seconds, cells, work)

    try:
        with mock.patch.object(StepCosts, "observe", noting):
            rng = random.Random(0)
            for count, length in itertools.product(tuple(together) * ROUNDS, lengths):
                _ask(engine, [[rng.randrange(engine.info.n_vocab) for _ in range(length)] for _ in range(count)])
    finally:
        engine.close()
    command = f"python -m clustersim.record {model.name}"
    return {"command": command, "machine": platform.machine(), "steps": len(steps), **fit(steps)}


def _ask(engine: TextEngine, prompts: Sequence[Sequence[int]]) -> None:
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=ANSWER)
    left = threading.Semaphore(0)

    def hear(event: TokenEvent) -> None:
        if event.finish_reason:
            left.release()

    for prompt in prompts:
        engine.submit(prompt, params, hear)
    for _ in prompts:
        left.acquire()


def fit(steps: Sequence[Step]) -> dict[str, Any]:
    """Return the terms of steps with answers alone, then those of prompts beside them; and the median relative error."""
    answers = [((1, n, cells), seconds) for n, prompts, seconds, cells, _ in steps if n and not prompts]
    decode = _fit(answers)
    alone = [((1, n, work), seconds) for n_decode, n, seconds, _, work in steps if n and not n_decode]
    prompt = _fit(alone)
    errors = [
        abs(np.dot(terms, row) / seconds - 1) for terms, rows in ((decode, answers), (prompt, alone)) for row, seconds in rows
    ]
    return {"decode": decode, "prompt": prompt, "median_error": round(float(np.median(errors)), 3)}


def _fit(rows: Sequence[tuple[tuple[float, float, float], float]]) -> list[float]:
    """Return the terms, none below 0, with the least relative errors; a second look leaves out the worst tenth."""
    kept = list(rows)
    for _ in range(2):
        scaled = np.array([np.array(features) / seconds for features, seconds in kept])
        used = [0, 1, 2]
        found = np.zeros(3)
        while used:
            solved = np.linalg.lstsq(scaled[:, used], np.ones(len(kept)), rcond=None)[0]
            if solved.min() >= 0:
                found[used] = solved
                break
            used.pop(int(solved.argmin()))
        kept.sort(key=lambda row: abs(float(np.dot(found, row[0])) / row[1] - 1))
        kept = kept[: max(3, len(kept) * 9 // 10)]
    return [float(f"{value:.4g}") for value in found]


if __name__ == "__main__":
    shown = json.dumps(record(Path(sys.argv[1])), indent=2) + "\n"
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(shown)
    else:
        print(shown, end="")
