"""A map of the KV cache: who holds which cells, in a form whose size does not grow with the cache. Pure.

llama.cpp does not tell where in the pool a cell lies. There the map shows cells by sequence, in the order in which these were
placed; what several sequences share stands once, with the first of them. Streams lie where they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

from locallab.engine.cache import PrefixCache
from locallab.engine.limits import Limits
from locallab.engine.prefix_tree import Entry, Node, path_of
from locallab.settings import Layout

BUCKETS = 256
"""Most parts of a map."""

Holders = Literal["live", "shared", "idle"]
HOLDERS: tuple[Holders, ...] = ("live", "shared", "idle")

Stretch = tuple[int, int, Holders]
"""The first cell and the number of cells of those in a row that have the same kind of holders."""

Bucket = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KvMap:
    """Counts of `cells`: `live` ones are held by one running request, `shared` ones by several or by one and a finished one,
    `idle` ones by the prefix cache alone, and the rest is `free`.

    Each of the `buckets` has the number of live, shared and idle cells among `bucket_cells` in a row. The cache consists of
    `streams` with as many buckets each, whose last one may have fewer cells; where all requests share the pool, it is one.
    """

    layout: Layout
    cells: int
    live: int
    shared: int
    idle: int
    free: int
    streams: int
    bucket_cells: int
    buckets: tuple[Bucket, ...]


def kv_map(cache: PrefixCache, limits: Limits) -> KvMap:
    """Return the map of what is computed. Call it in the thread that changes the cache."""
    streams = 1 if limits.pooled else limits.slots
    length = limits.cells // streams
    found = list(_pool(cache) if limits.pooled else _streams(cache, length))
    width = -(-length // max(1, BUCKETS // streams))
    counts = {each: sum(count for _, count, held in found if held == each) for each in HOLDERS}
    return KvMap(
        layout=limits.layout,
        cells=limits.cells,
        **counts,
        free=limits.cells - sum(counts.values()),
        streams=streams,
        bucket_cells=width,
        buckets=tuple(_buckets(found, streams, length, width)),
    )


def _streams(cache: PrefixCache, length: int) -> Iterator[Stretch]:
    for slot, entry in cache.residents():
        yield slot * length, entry.computed, _alone(entry)


def _pool(cache: PrefixCache) -> Iterator[Stretch]:
    start = 0
    for count, held in _shared(cache) if cache.shares else ((entry.computed, _alone(entry)) for _, entry in cache.residents()):
        yield start, count, held
        start += count


def _alone(entry: Entry) -> Holders:
    return "live" if entry.live else "idle"


def _shared(cache: PrefixCache) -> Iterator[tuple[int, Holders]]:
    seen: set[Node] = set()
    for _, entry in cache.residents():
        for node in reversed(list(path_of(entry.leaf))):
            if node not in seen:
                seen.add(node)
                yield from _holders(node)


def _holders(node: Node) -> Iterator[tuple[int, Holders]]:
    """Yield the cells of a node: each sequence holds a first part of them, as far as it is computed."""
    lengths: dict[bool, list[int]] = {True: [0, 0], False: [0]}
    for entry in node.slots.values():
        lengths[entry.live].append(max(0, min(entry.computed, node.end) - node.start))
    second, first = sorted(lengths[True])[-2:]
    finished = max(lengths[False])
    shared = max(second, min(first, finished))
    yield shared, "shared"
    yield first - shared, "live"
    yield max(0, finished - first), "idle"


def _buckets(found: Iterable[Stretch], streams: int, length: int, width: int) -> Iterator[Bucket]:
    each = -(-length // width)
    counts = {which: [0] * (streams * each) for which in HOLDERS}
    for start, count, held in found:
        stream, at = divmod(start, length)
        end = at + count
        while at < end:
            bucket = at // width
            until = min(end, (bucket + 1) * width)
            counts[held][stream * each + bucket] += until - at
            at = until
    return zip(*counts.values(), strict=True)
