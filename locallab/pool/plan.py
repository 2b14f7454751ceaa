"""The scheduling of models: decides which to fetch, load, close or grant next. Touches no engine, no file and no clock.

Demands are a queue. A request for a loaded model queues too once another model waits for its memory, so nobody starves and
models are not swapped for every single request. The pool reports events (`ask`, `release`, `loaded`, ...) and then carries
out the actions that `decide` returns.

1. A demand is granted immediately if its model is loaded and need not make room for an earlier demand.
2. The files of all other demands are fetched, without disturbing running requests.
3. The first demand whose file is fetched is next. "keep" makes room by closing the least recently used models; "swap" and
   "refuse" close all others, unless there is memory to load the new one first.
4. A model that must make room gets no new requests; it is closed after its last running request, or immediately if forced.
5. One load or close runs at a time.
"""

from __future__ import annotations

from locallab.engine.request import Kind
from locallab.errors import ModelLoadError
from locallab.pool.demand import Action, Close, Demand, Fetch, Granted, Load, Policy, Refused, Resident, Ticket
from locallab.pool.memory import MemoryUse, Need


class Plan:
    """The plan's state: `residents` by id, `queue` the demands in order, `default` the model of requests that name none."""

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
        """Return the model for requests that name none: the default one, else the last one used."""
        found = [resident for resident in self.residents.values() if not resident.unloading]
        return max(found, key=self._rank, default=None)

    def choose(self, kind: Kind | None = None) -> str | None:
        """Return the id for a request that names no model, of this kind if one is loaded. None if no model is loaded, queued,
        the default, or being unloaded."""
        there = sorted(filter(self._takes, self.residents.values()), key=self._rank, reverse=True)
        able = [resident.id for resident in there if kind in (None, resident.kind)]
        others = [*there, *self._going(), *self.residents.values()]
        return next(iter([*able, *self.queue, *filter(None, [self.default]), *(resident.id for resident in others)]), None)

    def seconds_left(self, id: str, now: float, keep_alive: float) -> float | None:
        """Return the seconds until a model is unloaded unless requested; None: never, or it is not in memory."""
        resident = self.residents.get(id)
        if resident is None or keep_alive < 0:
            return None
        return max(0.0, keep_alive - (0.0 if resident.leases else now - resident.used))

    def allows(self, id: str) -> bool:
        """Return whether requests may name this model; with "refuse", only one that is loaded, queued, the default or
        being unloaded: a request that comes meanwhile waits, and the model is loaded again for it."""
        resident = self.residents.get(id)
        there = resident is not None and self._takes(resident)
        going = any(resident.id == id for resident in self._going())
        return self.policy != "refuse" or there or going or id in self.queue or id == self.default

    def held(self) -> MemoryUse:
        """Return the memory that closing all models would free, with that of the running load or close."""
        uses = [resident.use for resident in self.residents.values()]
        match self.job:
            case Close(resident):
                uses.append(resident.use)
            case Load(id) if id in self.queue and (need := self.queue[id].need):
                uses.append(need.likely)
        return sum(uses, MemoryUse())

    # ---- events

    def ask(self, ticket: Ticket, id: str, *, force: bool = False) -> None:
        """Queue the ticket. One that does not lease keeps its demand even when withdrawn; `force` puts the demand first."""
        demand = self.queue.setdefault(id, Demand(id))
        demand.tickets.append(ticket)
        demand.kept |= not ticket.leases
        ticket.model = id
        if force:
            demand.forced = True
            self.queue = {id: demand, **self.queue}

    def release(self, ticket: Ticket, now: float) -> None:
        """End the ticket's lease, or withdraw the ticket from the queue."""
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
        """Mark the model to be closed, with `force` without waiting for its requests, and no longer the default."""
        resident = self.residents.get(id)
        if resident is not None:
            resident.unloading = True
            resident.forced |= force
        if self.default == id:
            self.default = None

    def died(self, id: str) -> None:
        """Mark the model to be closed at once, as its engine has ended. It stays the default, which the next request loads."""
        resident = self.residents.get(id)
        if resident is not None:
            resident.unloading = resident.forced = True

    def release_idle(self, id: str) -> None:
        """Mark the model to be closed if it is idle, as `expire` does."""
        resident = self.residents.get(id)
        if resident is not None and not resident.leases:
            resident.leaving = True

    def expire(self, now: float, keep_alive: float) -> float | None:
        """Mark models idle for `keep_alive` seconds to be closed; return the time when the next one is due."""
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
        self._grant(self.queue[id], self.residents[id])

    def failed(self, id: str, error: Exception, room: MemoryUse | None = None) -> None:
        """Record that the fetch or load failed. Tickets that name no model get another one; if nothing else is loaded or
        queued, the default model is queued again."""
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
        """Refuse all tickets and forget all models."""
        for demand in self.queue.values():
            self._actions += [Refused(ticket, error) for ticket in demand.tickets]
        self.queue.clear()
        self.residents.clear()
        self.default = None

    # ---- decisions

    def decide(self) -> list[Action]:
        """Return the actions to carry out now, in order; the plan relies on all of them being carried out."""
        moved = True
        while moved:
            before = self._making_room
            moved = self._grant_next() or self._begin_job() or self._making_room != before
        for demand in self.queue.values():
            if demand.need is None and demand.id not in self.residents and demand.id not in self._fetching:
                self._fetching.add(demand.id)
                self._actions.append(Fetch(demand.id))
        actions, self._actions = self._actions, []
        return actions

    def _rank(self, resident: Resident) -> tuple[bool, bool, bool, float]:
        return resident.id == self.default, not resident.leaving, resident.leases > 0, resident.used

    def _takes(self, resident: Resident) -> bool:
        """Return whether new requests may use it immediately."""
        return not (resident.leaving or resident.unloading or resident.id in self._making_room)

    def _going(self) -> list[Resident]:
        """Return the models that somebody has asked to unload and that are not gone yet."""
        closing = [self.job.resident] if isinstance(self.job, Close) else []
        return [resident for resident in (*self.residents.values(), *closing) if resident.unloading]

    def _grant_next(self) -> bool:
        """Grant the first demand whose model is loaded and need not make room; return False if there is none."""
        for demand in self.queue.values():
            resident = self.residents.get(demand.id)
            if resident is not None and not resident.unloading and resident.id not in self._making_room:
                self._grant(demand, resident)
                return True
        return False

    def _grant(self, demand: Demand, resident: Resident) -> None:
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

    def _begin_job(self) -> bool:
        """Begin a close or a load if none runs and one is due; return whether the plan has changed."""
        if self.job is not None:
            return False
        self._making_room = frozenset()
        for resident in self.residents.values():
            if (resident.leaving or resident.unloading) and (resident.forced or not resident.leases):
                return self._close(resident)
        for demand in self.queue.values():  # the first whose model is loaded and stays, or whose file is fetched
            loaded = self.residents.get(demand.id)
            if loaded is not None and not loaded.unloading:
                return False
            if loaded is None and demand.need is not None:
                return self._load(demand, demand.need)
        return False

    def _load(self, demand: Demand, need: Need) -> bool:
        """Begin the load if there is room, else the close of a model in its way; fail if the model cannot fit. Return False if
        all models in its way are in use."""
        if self.residents and not need.least.fits(sum((each.use for each in self.residents.values()), self._room)):
            # Closing everything would not help. With nothing loaded there is nothing to lose, and it is tried.
            size = f"{max(need.least.ram, need.least.vram) / 2**30:.1f} GiB of memory"
            reason = f"its weights need {size}, more than unloading all others would free"
            self.failed(demand.id, ModelLoadError(need.path, reason))
            return True
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

    def _close(self, resident: Resident) -> bool:
        del self.residents[resident.id]
        self.job = Close(resident)
        self._actions.append(self.job)
        return True
