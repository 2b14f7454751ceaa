"""The file of results: what was measured, by runs that each add rows or measure some again."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchlib import summary
from benchlib.summary import Row, Sample

Place = tuple[str, str, int]
"""A row: model, workload, clients."""


@dataclass(frozen=True, slots=True)
class Run:
    """One call of scripts/bench: the machine, versions and command by name, and how each server was reached."""

    facts: dict[str, str]
    servers: dict[str, str]
    reference: str
    rounds: int
    quick: bool = False


@dataclass(slots=True)
class Results:
    """Samples and the runs that they come from. With a `path`, each new sample is written there at once."""

    path: Path | None = None
    runs: list[Run] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    _new: set[Place] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> Results:
        """The results in `path`. Raises ValueError, with the path, for a file that this module has not written."""
        try:
            content = json.loads(path.read_text())
            runs = [Run(**each) for each in content["runs"]]
            return cls(path, runs, [Sample(**each) for each in content["samples"]])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no file of results of this script: {error}") from None

    @property
    def reference(self) -> str:
        """The server that counts as 1.00: that of the last run."""
        return self.runs[-1].reference

    @property
    def rows(self) -> list[Row]:
        """The rows of the table."""
        return summary.summarise(self.samples, self.reference)

    def begin(self, run: Run) -> None:
        """Take the samples that follow as those of `run`."""
        self.runs.append(run)
        self._new = set()

    def add(self, sample: Sample) -> None:
        """Add a sample of the last run. The first one of a row takes the place of what earlier runs measured for it."""
        place = _place(sample)
        if place not in self._new:
            self._new.add(place)
            self.samples = [each for each in self.samples if _place(each) != place]
        self.samples.append(dataclasses.replace(sample, run=len(self.runs) - 1))
        self.save()

    def complete(self, place: Place, rounds: int) -> bool:
        """Whether a row has so many rounds, each by every server of its run, and no wrong answers."""
        turns = [each for each in self.samples if _place(each) == place]
        if not turns or any(turn.errors or turn.wrong_lengths for turn in turns):
            return False
        return all(sum(turn.server == name for turn in turns) >= rounds for name in self.runs[turns[0].run].servers)

    def save(self) -> None:
        """Write the file anew, if there is one; a reader sees the old or the new one, never a part."""
        if self.path:
            draft = self.path.with_name(f".{self.path.name}.new")
            draft.write_text(json.dumps(self.content(), indent=1) + "\n")
            os.replace(draft, self.path)

    def content(self) -> dict[str, Any]:
        """Runs, samples and rows as JSON has them. Runs that no sample comes from are left out."""
        used = sorted({sample.run for sample in self.samples})
        runs = [dataclasses.asdict(self.runs[each]) for each in used]
        samples = [dataclasses.asdict(dataclasses.replace(each, run=used.index(each.run))) for each in self.samples]
        return {"runs": runs, "samples": samples, "rows": [dataclasses.asdict(row) for row in self.rows]}


def _place(sample: Sample) -> Place:
    return sample.model, sample.workload, sample.clients
