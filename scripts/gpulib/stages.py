"""Runs the stages of scripts/gpu-check: each as a child process with a time budget, its output kept as it comes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

STOP_SECONDS = 20.0
"""Time that a child and its own children get to end when its budget is used up."""


class StageFailed(Exception):
    """A stage could not do all that it should; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """A part of the run: what it does returns facts for the report, and may raise StageFailed; it should take at most so many
    `seconds`."""

    name: str
    seconds: float
    work: Callable[[Runner], dict[str, Any]]


class Runner:
    """Runs stages and their children, and keeps every result in a folder at once: the machine may vanish."""

    def __init__(self, output: Path, seconds: float) -> None:
        """All stages together end after `seconds`. Creates the folder `output`."""
        self.output = output
        self.results: dict[str, Any] = {"stages": {}}
        self._end = time.monotonic() + seconds
        self._stage_end = self._end
        output.mkdir(parents=True, exist_ok=True)

    def run(self, stages: Sequence[Stage], report: Callable[[dict[str, Any]], str]) -> bool:
        """Run the stages one after the other, whatever fails; write results.json and report.md after each. Return whether all
        of them have done everything."""
        for stage in stages:
            say(f"{stage.name} ...")
            began = time.monotonic()
            self._stage_end = min(self._end, began + stage.seconds)
            problem = None
            try:
                if began >= self._end:
                    raise StageFailed("no time was left")
                self.results[stage.name] = stage.work(self)
            except (StageFailed, OSError) as error:
                problem = str(error)
            seconds = time.monotonic() - began
            self.results["stages"][stage.name] = {"seconds": round(seconds, 1), "problem": problem}
            say(f"{stage.name}: {problem or 'done'} ({seconds:.0f} s)")
            (self.output / "results.json").write_text(json.dumps(self.results, indent=1) + "\n")
            (self.output / "report.md").write_text(report(self.results) + "\n")
        return all(each["problem"] is None for each in self.results["stages"].values())

    @property
    def left(self) -> float:
        """Seconds that the running stage may still take."""
        return max(0.0, self._stage_end - time.monotonic())

    def keep(self, name: str, facts: Any) -> None:
        """Keep what a stage has found so far, also if it fails later."""
        self.results[name] = facts

    def child(
        self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        """Run a command for as long as the stage may; return what it printed, which NAME.log has as well, both outputs mixed.

        Raises StageFailed, with the last lines, if it fails or takes too long; then nothing that it started is left.
        """
        path = self.output / f"{name}.log"
        words = [str(word) for word in command]
        with path.open("w") as log:
            log.write(f"$ {shlex.join(words)}\n")
            log.flush()
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(self.left)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
        text = path.read_text(errors="replace").partition("\n")[2]
        if code == 0:
            return text
        why = "it took too long" if code is None else f"it ended with exit code {code}"
        raise StageFailed(f"{Path(words[0]).name}: {why}; see {path.name}: {_last(text)}")


def say(text: str) -> None:
    """Tell how the run is going, beside the report."""
    print(f"gpu-check: {text}", file=sys.stderr, flush=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child that runs still, and all that it has started: it has a session of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-2:])[-400:] or "it printed nothing"
