"""The ways to choose a replica that are compared. Each router knows what one front does: its own requests and publications."""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from clustersim.replica import Job, Replica
from locallab.cluster.routing import Published, Table

POINTS = 64
"""Points of each replica on the ring of consistent hashing."""

FIRST = 8
"""The digest by which a request is hashed, counted from 1: that of its first 1,024 characters, or of all if it has fewer."""


class Router(Protocol):
    """What a front does with a request: `choose` a replica, which then gets it, and `end` once it is answered."""

    def choose(self, name: int, job: Job) -> int: ...

    def end(self, name: int) -> None: ...

    def publish(self, replica: int, told: Published) -> None: ...


class _Blind:
    """A router that learns nothing."""

    def __init__(self, replicas: Sequence[Replica], rng: random.Random) -> None:
        self.replicas, self.rng = replicas, rng

    def end(self, name: int) -> None:
        pass

    def publish(self, replica: int, told: Published) -> None:
        pass


class Random(_Blind):
    """Any replica."""

    def choose(self, name: int, job: Job) -> int:
        return self.rng.randrange(len(self.replicas))


class RoundRobin(_Blind):
    """One replica after the other, each front from another one on."""

    def __init__(self, replicas: Sequence[Replica], rng: random.Random) -> None:
        super().__init__(replicas, rng)
        self._at = rng.randrange(len(replicas))

    def choose(self, name: int, job: Job) -> int:
        self._at = (self._at + 1) % len(self.replicas)
        return self._at


class LeastLoaded(_Blind):
    """The replica with the fewest requests, of all fronts and at this moment: more than a front can know."""

    def choose(self, name: int, job: Job) -> int:
        least = min(replica.requests for replica in self.replicas)
        return self.rng.choice([at for at, replica in enumerate(self.replicas) if replica.requests == least])


class ConsistentHashing(_Blind):
    """The replica whose point on a ring follows the digest of the request's first characters."""

    def __init__(self, replicas: Sequence[Replica], rng: random.Random) -> None:
        super().__init__(replicas, rng)
        points = random.Random(0)  # the same ring at every front
        self._ring = sorted((points.getrandbits(64), at) for at in range(len(replicas)) for _ in range(POINTS))

    def choose(self, name: int, job: Job) -> int:
        first = job.request.route.digests[:FIRST]
        at = bisect.bisect(self._ring, (first[-1] if first else self.rng.getrandbits(64), -1))
        return self._ring[at % len(self._ring)][1]


class Prefixes:
    """The table of `locallab.cluster.routing`."""

    def __init__(self, replicas: Sequence[Replica], rng: random.Random) -> None:
        self.table = Table(rng)
        self.table.set_replicas(range(len(replicas)))

    def choose(self, name: int, job: Job) -> int:
        chosen = self.table.choose(job.request.route)[0]
        assert isinstance(chosen, int)
        self.table.send(name, job.request.route, chosen)
        return chosen

    def end(self, name: int) -> None:
        self.table.end(name)

    def publish(self, replica: int, told: Published) -> None:
        self.table.publish(replica, told)


ROUTERS: dict[str, Callable[[Sequence[Replica], random.Random], Router]] = {
    "random": Random,
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "hashing": ConsistentHashing,
    "prefixes": Prefixes,
}
