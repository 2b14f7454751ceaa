"""The activity of a cluster, put together from what its replicas tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from locallab.pool import Pool
from locallab.server.cluster import Cluster, Told
from locallab.server.dialects.native.activity import ActiveRequest, Activity, MemoryNow, Sampler, Snapshot, memory_now


class ClusterSampler(Sampler):
    """Makes snapshots of a cluster: the front's memory, and what all replicas do."""

    def __init__(self, pool: Pool, cluster: Cluster, memory: Callable[[], MemoryNow] = memory_now) -> None:
        super().__init__(pool, memory)
        self._cluster = cluster

    async def _snapshot(self, memory: MemoryNow) -> Snapshot:
        told = await self._cluster.ask("activity")
        parts = await asyncio.to_thread(_decoded, told)
        requests = [
            (caller, msgspec.structs.replace(request, replica=name))
            for name, (_, found) in parts.items()
            for caller, request in found
        ]
        requests.sort(key=lambda each: (each[1].state == "waiting", -each[1].age_seconds))
        activities = [(name, activity) for name, (activity, _) in parts.items()]
        return Snapshot(
            Activity(
                running=sum(each.running for _, each in activities),
                waiting=sum(each.waiting for _, each in activities),
                requests=[],
                models=[msgspec.structs.replace(model, replica=name) for name, each in activities for model in each.models],
                loading=[loading for _, each in activities for loading in each.loading],
                failed={model: reason for _, each in activities for model, reason in each.failed.items()},
                memory=memory,
                replicas=[each.replica for each in told],
            ),
            requests,
        )


def _decoded(told: Sequence[Told]) -> dict[str, tuple[Activity, list[tuple[str, ActiveRequest]]]]:
    kind = tuple[Activity, list[tuple[str, ActiveRequest]]]
    return {each.replica.id: msgspec.msgpack.decode(each.activity, type=kind) for each in told if each.activity}
