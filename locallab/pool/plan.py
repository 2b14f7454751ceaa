"""Which model to fetch, load, close or hand out next. Decides and remembers; touches no engine, no file and no clock.

Who waits for a model holds a ticket. Tickets for one model make one demand, and demands are a queue: a request for the model
that is there queues too, once another model waits for it to go, so nobody starves and the models do not change places for
every single request. The pool tells what happened (`ask`, `release`, `loaded`, ...) and then carries out what `decide` says.

1. A demand whose model is there, and need not make room for the first one, is handed out at once.
2. The file of every other demanded model is fetched, without disturbing what runs.
3. The first demand whose file is here is next. "keep" makes room by closing the models least recently used; "swap" and
   "refuse" close all others, unless there is memory to load the new one first.
4. A model that must make room gets no new requests; it is closed when the last running one has ended, or now if forced.
5. One load or close at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

from locallab.engine.request import Kind
from locallab.errors import ModelLoadError
from locallab.pool.demand import Action, Close, Demand, Fetch, Granted, Load, Policy, Refused, Resident, Ticket
from locallab.pool.memory import MemoryUse, Need


class Plan:
    """`residents` by id, `queue` the demands in order, `default` the model for requests that name none."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.residents: dict[str, Resident] = {}
        self.queue: dict[str, Demand] = {}
        self.default: str | None = None
        self.job: Load | Close | None = None
        self._room = MemoryUse()
        self._making_room: frozenset[str] = frozenset()
        self._fetching: set[str] = set()
        self._actions: list[Action] = []

    # ---- questions

    def current(self) -> Resident | None:
        """The model that answers requests naming none: the default one, else the last one used."""
        found = [resident for resident in self.residents.values() if not resident.unloading]
        return max(found, key=self._rank, default=None)

    def choose(self, kind: Kind | None = None) -> str | None:
        """The id for somebody who names no model: of this kind, if such a one is there. None when nothing is loaded, nor on its
        way, nor to be brought back."""
        there = sorted(filter(self._takes, self.residents.values()), key=self._rank, reverse=True)
        able = [resident.id for resident in there if kind in (None, resident.kind)]
        return next(iter([*able, *self.queue, *filter(None, [self.default]), *(resident.id for resident in there)]), None)

    def allows(self, id: str) -> bool:
        """Whether a request may ask for this model: with "refuse" only for one that is there, awaited, or brought back."""
        resident = self.residents.get(id)
        there = resident is not None and self._takes(resident)
        return self.policy != "refuse" or there or id in self.queue or id == self.default

    def held(self) -> MemoryUse:
        """What could be given back for another model, with what is about to be taken or given back at the moment."""
        uses = [resident.use for resident in self.residents.values()]
        match self.job:
            case Close(resident):
                uses.append(resident.use)
            case Load(id) if id in self.queue and (need := self.queue[id].need):
                uses.append(need.likely)
        return sum(uses, MemoryUse())

    # ---- what happens outside

    def ask(self, ticket: Ticket, id: str, *, force: bool = False) -> None:
        """A ticket that does not lease makes a demand that stays when it is withdrawn; `force` lets nobody wait before it."""
        demand = self.queue.setdefault(id, Demand(id))
        demand.tickets.append(ticket)
        demand.kept |= not ticket.leases
        ticket.model = id
        if force:
            demand.forced = True
            self.queue = {id: demand, **self.queue}

    def release(self, ticket: Ticket, now: float) -> None:
        """The holder of the ticket does not want the model any more, or gives up waiting for it."""
        if ticket.resident is not None:
            ticket.resident.leases -= 1
            ticket.resident.used = now
            ticket.resident = None
            return
        demand = self.queue.get(ticket.model)
        if demand is None or ticket not in demand.tickets:
            return
        demand.tickets.remove(ticket)
        if not demand.tickets and not demand.kept and self.job != Load(demand.id):
            del self.queue[demand.id]

    def unload(self, id: str, *, force: bool = False) -> None:
        """The model is to go, with `force` without waiting for its requests; nothing brings it back but being asked for."""
        resident = self.residents.get(id)
        if resident is not None:
            resident.unloading = True
            resident.forced |= force
        if self.default == id:
            self.default = None

    def let_go(self, id: str) -> None:
        """The model goes if nobody uses it, as one does that expires."""
        resident = self.residents.get(id)
        if resident is not None and not resident.leases:
            resident.leaving = True

    def expire(self, now: float, keep_alive: float) -> float | None:
        """Lets go of models unused for `keep_alive` seconds; returns when the next one is due."""
        idle = [each for each in self.residents.values() if not (each.leases or each.leaving or each.unloading)]
        for resident in idle:
            resident.leaving = now - resident.used >= keep_alive
        return min((each.used + keep_alive for each in idle if not each.leaving), default=None)

    def fetched(self, id: str, need: Need, room: MemoryUse) -> None:
        self._fetching.discard(id)
        self._room = room
        if id in self.queue:
            self.queue[id].need = need

    def loaded(self, id: str, use: MemoryUse, room: MemoryUse, now: float, kind: Kind = "text") -> None:
        self.job = None
        self._room = room
        self.residents[id] = Resident(id, use, now, kind=kind)
        self._hand_out(self.queue[id], self.residents[id])

    def failed(self, id: str, error: Exception, room: MemoryUse | None = None) -> None:
        """The fetch or the load failed. Who named no model gets another one; if there is none, the one before comes back."""
        self._fetching.discard(id)
        if self.job == Load(id):
            self.job = None
        self._room = room or self._room
        demand = self.queue.pop(id, Demand(id))
        for ticket in demand.tickets:
            other = self.choose(ticket.kind)
            if ticket.named or other in (None, id):
                self._actions.append(Refused(ticket, error))
            else:
                self.ask(ticket, str(other))
        if not self.residents and not self.queue and self.default not in (None, id):
            self.queue[str(self.default)] = Demand(str(self.default), kept=True)

    def closed(self, room: MemoryUse) -> None:
        self.job = None
        self._room = room

    def stop(self, error: Exception) -> None:
        """Nothing is loaded any more, and nobody waits."""
        for demand in self.queue.values():
            self._actions += [Refused(ticket, error) for ticket in demand.tickets]
        self.queue.clear()
        self.residents.clear()
        self.default = None

    # ---- decisions

    def decide(self) -> list[Action]:
        """What to do now, in this order; the plan counts on it being done."""
        moved = True
        while moved:
            before = self._making_room
            moved = self._serve() or self._begin() or self._making_room != before
        for demand in self.queue.values():
            if demand.need is None and demand.id not in self.residents and demand.id not in self._fetching:
                self._fetching.add(demand.id)
                self._actions.append(Fetch(demand.id))
        actions, self._actions = self._actions, []
        return actions

    def _rank(self, resident: Resident) -> tuple[bool, bool, bool, float]:
        return resident.id == self.default, not resident.leaving, resident.leases > 0, resident.used

    def _takes(self, resident: Resident) -> bool:
        """Whether new requests may have it at once."""
        return not (resident.leaving or resident.unloading or resident.id in self._making_room)

    def _serve(self) -> bool:
        """Hands out one demanded model that is there, unless it must make room for a demand before."""
        for demand in self.queue.values():
            resident = self.residents.get(demand.id)
            if resident is not None and not resident.unloading and resident.id not in self._making_room:
                self._hand_out(demand, resident)
                return True
        return False

    def _first(self) -> Demand | None:
        """The first demand that can go on: its model is there and stays, or its file is here."""
        for demand in self.queue.values():
            resident = self.residents.get(demand.id)
            if (resident is None and demand.need is not None) or (resident is not None and not resident.unloading):
                return demand
        return None

    def _hand_out(self, demand: Demand, resident: Resident) -> None:
        del self.queue[demand.id]
        resident.leaving = False
        for ticket in demand.tickets:
            if ticket.leases:
                ticket.resident = resident
                resident.leases += 1
            self._actions.append(Granted(ticket, resident))
        if self.policy != "keep" or demand.kept or self.default is None:
            self.default = demand.id
        if self.policy != "keep":
            for other in self.residents.values():
                other.leaving = other is not resident

    def _begin(self) -> bool:
        """Starts a close or a load, if none runs and one is due."""
        if self.job is not None:
            return False
        self._making_room = frozenset()
        leaver = next(self._leavers(), None)
        if leaver is not None:
            return self._close(leaver)
        demand = self._first()
        if demand is None or demand.id in self.residents or demand.need is None:
            return False
        if self._is_hopeless(demand.need):
            self.failed(demand.id, _too_large(demand.need))
            return True
        return self._make_room(demand, demand.need)

    def _make_room(self, demand: Demand, need: Need) -> bool:
        """Loads the model if there is room, else closes one of those in its way that may be closed."""
        in_the_way = self._in_the_way(need)
        if not in_the_way:
            self.job = Load(demand.id)
            self._actions.append(self.job)
            return True
        self._making_room = frozenset(each.id for each in in_the_way)
        for resident in in_the_way:
            resident.forced |= demand.forced
            if resident.forced or not resident.leases:
                return self._close(resident)
        return False

    def _in_the_way(self, need: Need) -> list[Resident]:
        if need.likely.fits(self._room):
            return []
        if self.policy != "keep":
            return list(self.residents.values())
        found: list[Resident] = []
        room = self._room
        for resident in sorted(self.residents.values(), key=lambda each: (each.leases > 0, each.used)):
            if need.likely.fits(room):
                break
            found.append(resident)
            room += resident.use
        return found

    def _is_hopeless(self, need: Need) -> bool:
        """Whether it cannot fit, and so nothing should be closed for it. Without anything to lose it may try."""
        room = sum((each.use for each in self.residents.values()), self._room)
        return bool(self.residents) and not need.least.fits(room)

    def _leavers(self) -> Iterator[Resident]:
        for resident in self.residents.values():
            if (resident.leaving or resident.unloading) and (resident.forced or not resident.leases):
                yield resident

    def _close(self, resident: Resident) -> bool:
        del self.residents[resident.id]
        self.job = Close(resident)
        self._actions.append(self.job)
        return True


def _too_large(need: Need) -> ModelLoadError:
    size = max(need.least.ram, need.least.vram) / 2**30
    return ModelLoadError(need.path, f"its weights need {size:.1f} GiB of memory, more than unloading all others would free")
