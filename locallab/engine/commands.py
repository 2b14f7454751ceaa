"""What other threads ask of an engine's thread."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

from locallab.engine.media.encoder import Encoded
from locallab.engine.mover import Result
from locallab.engine.sequence import Sequence
from locallab.engine.view import EngineView
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
    """Show what the engine does."""

    answer: Future[EngineView]


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
