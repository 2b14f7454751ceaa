"""What the router's table takes on this machine, when every replica holds as many prefixes as it publishes."""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable, Mapping

from clustersim.replica import PUBLISHED
from locallab.cluster.prefixes import digests, text_of
from locallab.cluster.routing import Published, Route, Table

SYSTEM, ASKED = 8000, 2000
"""Characters of the system prompts that a quarter of the replicas hold, and of what follows them."""

CHANGED = 64
"""Digests of a replica that are others from one publication to the next."""

SAMPLES = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Of a table: its digests, its MiB, and the microseconds of a request's digests, of all that the table does for a request,
    and of one replica's publication, to be made of its bytes and to be taken."""

    replicas: int
    digests: int
    mib: float
    digest_us: float
    request_us: float
    unpack_us: float
    publish_us: float

    def cells(self) -> Mapping[str, str]:
        return {
            "replicas": f"{self.replicas:,}",
            "digests": f"{self.digests:,}",
            "MiB": f"{self.mib:.1f}",
            "bytes a digest": f"{self.mib * 2**20 / self.digests:.0f}",
            "digests, µs": f"{self.digest_us:.0f}",
            "request, µs": f"{self.request_us:.0f}",
            "unpack, µs": f"{self.unpack_us:.0f}",
            "publication, µs": f"{self.publish_us:.0f}",
        }


def measure(replicas: int) -> Cost:
    """Fill a table and measure what its methods take, each the median of some calls."""
    rng = random.Random(0)
    names = itertools.count()
    systems = [_text(f"system {at}", SYSTEM) for at in range(4)]
    held = [_packed(_held(systems[at % 4], names)) for at in range(replicas)]
    tracemalloc.start()
    table = Table(rng)
    table.set_replicas(range(replicas))
    for at, prefixes in enumerate(held):
        table.publish(at, _unpacked(1, prefixes))
    mib = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    bodies = [
        {"messages": [{"role": "user", "content": systems[at % 4] + _text(f"asked {at}", ASKED)}]} for at in range(SAMPLES)
    ]
    routes: list[Route] = []
    digest = _median(SAMPLES, lambda at: routes.append(_route(bodies[at])))
    request = _median(SAMPLES, lambda at: _request(table, at, routes[at]))
    changed = [_packed([_name(names) for _ in range(CHANGED)]) + each[8 * CHANGED :] for each in held[:SAMPLES]]
    told: list[Published] = []
    unpack = _median(len(changed), lambda at: told.append(_unpacked(2, changed[at])))
    publish = _median(len(told), lambda at: table.publish(at, told[at]))
    return Cost(replicas, table.size, mib, digest, request, unpack, publish)


def _request(table: Table, name: int, route: Route) -> None:
    table.send(name, route, table.choose(route)[0])
    if name >= 8:
        table.end(name - 8)


def _route(body: Mapping[str, object]) -> Route:
    text = text_of(body)
    return Route(digests("", text), len(text))


def _held(system: str, names: itertools.count[int]) -> list[int]:
    own = [*_route({"messages": [{"role": "user", "content": system}]}).digests]
    return own + [_name(names) for _ in range(PUBLISHED - len(own))]


def _packed(digests: Iterable[int]) -> bytes:
    return b"".join(digest.to_bytes(8, "big") for digest in digests)


def _unpacked(number: int, packed: bytes) -> Published:
    """Return what a replica published, as the router on Ray Serve's interface makes it of the bytes."""
    each = (packed[at : at + 8] for at in range(0, len(packed), 8))
    return Published(number, frozenset(int.from_bytes(digest, "big") for digest in each))


def _name(names: itertools.count[int]) -> int:
    return digests(f"{next(names)}", " " * 128)[0]


def _text(name: str, length: int) -> str:
    return (name + " ") * (length // (len(name) + 1))


def _median(count: int, call: Callable[[int], None]) -> float:
    """Return the median microseconds of calls with the numbers up to `count`."""
    taken = []
    for at in range(count):
        begin = time.perf_counter()
        call(at)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken) * 1e6
