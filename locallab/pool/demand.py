"""The terms of the plan: models in memory, the callers waiting for one, and the actions decided."""

from __future__ import annotations

import dataclasses
from typing import Literal

from locallab.engine.request import Kind
from locallab.pool.memory import MemoryUse, Need

Policy = Literal["swap", "keep", "refuse"]


@dataclasses.dataclass(eq=False, slots=True)
class Resident:
    """A model in memory. `used` is when its last request ended. `leaving`: closed once idle, unless it is requested before;
    `unloading`: closed in any case, with `forced` even while in use."""

    id: str
    use: MemoryUse
    used: float
    leases: int = 0
    leaving: bool = False
    unloading: bool = False
    forced: bool = False
    kind: Kind = "text"


@dataclasses.dataclass(eq=False)
class Ticket:
    """A caller's place in the queue for one model: to lease it, or with `leases` False to learn that it is loaded.

    `named` is False for a caller that accepts any model, preferably one of this `kind`. `resident` is set while leased.
    """

    leases: bool = True
    named: bool = True
    model: str = ""
    resident: Resident | None = None
    kind: Kind | None = None


@dataclasses.dataclass(eq=False, slots=True)
class Demand:
    """All tickets waiting for one model; the demands form the queue. `kept`: the model is loaded even if every ticket is
    withdrawn. `need` is None until its file has been fetched."""

    id: str
    tickets: list[Ticket] = dataclasses.field(default_factory=list)
    kept: bool = False
    forced: bool = False
    need: Need | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Fetch:
    id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Close:
    resident: Resident


@dataclasses.dataclass(frozen=True, slots=True)
class Granted:
    """The ticket's model is loaded; a ticket that leases holds it until `Plan.release`."""

    ticket: Ticket
    resident: Resident


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    ticket: Ticket
    error: Exception


Action = Fetch | Load | Close | Granted | Refused
