"""What the plan reasons about: models in memory, those who wait for one, and what it has decided to do."""

from __future__ import annotations

import dataclasses
from typing import Literal

from locallab.engine.request import Kind
from locallab.pool.memory import MemoryUse, Need

Policy = Literal["swap", "keep", "refuse"]


@dataclasses.dataclass(eq=False, slots=True)
class Resident:
    """A model in memory. `used` is when its last request ended. `leaving`: to be closed when idle, taken back if asked for;
    `unloading`: to be closed in any case, with `forced` even while it is used."""

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
    """Somebody who waits for a model: to use it, or (`leases` false) to know that it is loaded. `named` is false for one who
    takes whichever model there is, rather one of this `kind`."""

    leases: bool = True
    named: bool = True
    model: str = ""
    resident: Resident | None = None
    kind: Kind | None = None


@dataclasses.dataclass(eq=False, slots=True)
class Demand:
    """Those who wait for one model. `kept`: to be loaded even when nobody waits any more. `need` is known once its file is
    here."""

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
    """The ticket's model is there; one that leases holds it until `release`."""

    ticket: Ticket
    resident: Resident


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    ticket: Ticket
    error: Exception


Action = Fetch | Load | Close | Granted | Refused
