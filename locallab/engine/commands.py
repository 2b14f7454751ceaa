"""What other threads ask of an engine's thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from locallab.engine.media.encoder import Encoded
from locallab.engine.mover import Result
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import Sequence
from locallab.engine.totals import Totals
from locallab.errors import Overloaded


@dataclasses.dataclass(frozen=True, slots=True)
class Submit:
    """Begin a sequence. The queue may be `overloaded`: then one must leave it with that error."""

    sequence: Sequence
    overloaded: Overloaded | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Cancel:
    id: int


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """Let all owners have what begins one of these prompts."""

    prompts: tuple[list[int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """Answer a question about what the engine does or has."""

    answer: Future[Any]
    question: Callable[[Scheduler, Totals], Any]

    def carry_out(self, scheduler: Scheduler, totals: Totals) -> None:
        """Set the answer, or what went wrong: that harms no request."""
        if self.answer.set_running_or_notify_cancel():
            try:
                self.answer.set_result(self.question(scheduler, totals))
            except Exception as error:
                self.answer.set_exception(error)


@dataclasses.dataclass(frozen=True, slots=True)
class Fail:
    """End a sequence by an error of its own, after the step at hand."""

    id: int
    error: Exception


@dataclasses.dataclass(frozen=True, slots=True)
class Close:
    """End what runs at `deadline` (time.monotonic) at the latest, then stop."""

    deadline: float


Command = Submit | Cancel | Share | Look | Fail | Close | Encoded | Result
