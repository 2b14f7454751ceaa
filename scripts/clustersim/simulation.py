"""Plays one trace to simulated replicas by way of one kind of router, on a clock of its own. Deterministic by its seed."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import random
from collections.abc import Sequence

from clustersim.costs import Costs
from clustersim.replica import Job, Replica
from clustersim.routers import ROUTERS
from clustersim.traces import BURST, Trace

DELAY = 0.1
"""Seconds from a publication to the fronts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cluster:
    """How many replicas there are, with how many answers at once and tokens of cache each; how many fronts, and the seconds
    from one publication of a replica to its next."""

    replicas: int
    parallel: int = 8
    cache: int = 32768
    fronts: int = 4
    period: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trace: shares, seconds, tokens of answers a second, and the replicas that computed the burst's prompt."""

    requests: int
    hit_rate: float
    balance: float
    ttft_p50: float
    ttft_p99: float
    tokens_per_second: float
    copies: int


class Simulation:
    """The events of one run. `run` plays it to its end."""

    def __init__(self, trace: Trace, cluster: Cluster, router: str, seed: int, costs: Costs) -> None:
        self.replicas = [Replica(costs, cluster.parallel, cluster.cache) for _ in range(cluster.replicas)]
        self.fronts = [ROUTERS[router](self.replicas, random.Random(f"{seed} {at}")) for at in range(cluster.fronts)]
        self.now = 0.0
        self._trace, self._period = trace, cluster.period
        self._rng = random.Random(f"fronts {seed}")
        self._order = itertools.count()
        self._events: list[tuple[float, int, str, int, object]] = []
        self._left = sum(map(len, trace.sessions))
        self._turns = [0] * len(trace.sessions)
        self._jobs: dict[int, tuple[Job, int]] = {}
        self._names: dict[Job, int] = {}
        self.done: list[tuple[Job, int]] = []

    def run(self) -> Outcome:
        """Play all of the trace and return what came of it."""
        for number, session in enumerate(self._trace.sessions):
            self._at(session[0].think, "arrive", number)
        for number in range(len(self.replicas)):
            self._at(self._rng.random() * self._period, "publish", number)
        while self._left:
            self.now, _, kind, number, what = heapq.heappop(self._events)
            getattr(self, f"_{kind}")(number, what)
        return self._outcome()

    def _at(self, when: float, kind: str, number: int, what: object = None) -> None:
        heapq.heappush(self._events, (when, next(self._order), kind, number, what))

    def _arrive(self, session: int, what: object) -> None:
        front = self._rng.randrange(len(self.fronts))
        job = Job(self._trace.sessions[session][self._turns[session]], session, front, self.now)
        name = self._names[job] = len(self._names)
        replica = self.fronts[front].choose(name, job)
        self._jobs[name] = job, replica
        self._step(replica, self.replicas[replica].arrive(job, self.now))

    def _step(self, replica: int, ends: float | None) -> None:
        if ends is not None:
            self._at(ends, "end", replica, self.replicas[replica].version)

    def _end(self, replica: int, version: object) -> None:
        if version != self.replicas[replica].version:
            return
        done, ends = self.replicas[replica].end(self.now)
        self._step(replica, ends)
        for job in done:
            name = self._names[job]
            self.done.append(self._jobs.pop(name))
            self.fronts[job.front].end(name)
            self._left -= 1
            self._turns[job.session] += 1
            if self._turns[job.session] < len(self._trace.sessions[job.session]):
                think = self._trace.sessions[job.session][self._turns[job.session]].think
                self._at(self.now + think, "arrive", job.session)

    def _publish(self, replica: int, what: object) -> None:
        self._at(self.now + DELAY, "heard", replica, self.replicas[replica].publish())
        self._at(self.now + self._period, "publish", replica)

    def _heard(self, replica: int, told: object) -> None:
        for front in self.fronts:
            front.publish(replica, told)  # type: ignore[arg-type]

    def _outcome(self) -> Outcome:
        jobs = [job for job, _ in self.done]
        waits = sorted(job.first - job.came for job in jobs)
        busy = [replica.busy for replica in self.replicas]
        return Outcome(
            requests=len(jobs),
            hit_rate=sum(job.cached for job in jobs) / sum(job.request.prompt for job in jobs),
            balance=max(busy) * len(busy) / sum(busy),
            ttft_p50=_quantile(waits, 0.5),
            ttft_p99=_quantile(waits, 0.99),
            tokens_per_second=sum(job.request.answer for job in jobs) / self.now,
            copies=len({at for job, at in self.done if job.request.group == BURST}),
        )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
