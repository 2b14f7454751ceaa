"""The prefix-aware request router, on Ray Serve's interface for one."""

from __future__ import annotations

import struct
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from locallab.cluster import choices
from locallab.cluster.routing import Published, Route, Table

STATS, ADDRESS = "published", "address"
"""The names in a replica's routing stats of what it publishes, and of where it listens."""


class PrefixRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Sends a request, whose arguments are its Route and its number, to the replica that `Table` chooses. Ray Serve's own
    checks follow: a replica with as many requests as it may have passes one on to the next."""

    def initialize_state(self, **kwargs: Any) -> None:
        self._table = Table()
        self._numbers: dict[ReplicaID, int] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        by_id = {each.replica_id: each for each in candidate_replicas}
        ranked = self._table.choose(_route(pending_request), list(by_id))
        if ranked and pending_request is not None and len(pending_request.args) > 1:
            address = by_id[ranked[0]].routing_stats.get(ADDRESS)
            if address is not None:
                choices.tell(pending_request.args[1], address)
        return [[by_id[each]] for each in ranked]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        self._table.set_replicas(each.replica_id for each in replicas)
        for each in replicas:
            told = each.routing_stats.get(STATS)
            if told is not None and self._numbers.get(each.replica_id) != told[0]:  # each broadcast has those of all replicas
                self._table.publish(each.replica_id, unpacked(told))
        self._numbers = {each.replica_id: each.routing_stats.get(STATS, (0,))[0] for each in replicas}
        super().update_replicas(replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        self._table.forget(replica_id)
        super().on_replica_actor_died(replica_id)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._table.send(pending_request.metadata.internal_request_id, _route(pending_request), replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._table.end(internal_request_id)


def packed(told: Published) -> tuple[int, bytes, int]:
    """Return what a replica publishes in few bytes."""
    return told.number, struct.pack(f">{len(told.held)}Q", *sorted(told.held)), told.work


def unpacked(told: tuple[int, bytes, int]) -> Published:
    """Return what `packed` has packed."""
    number, held, work = told
    return Published(number, frozenset(struct.unpack(f">{len(held) // 8}Q", held)), work)


def _route(request: PendingRequest | None) -> Route:
    found = request.args[0] if request is not None and request.args else None
    return found if isinstance(found, Route) else Route()
