"""Which stream of the KV cache a sequence lies in, where each has one of its own. Pure decisions.

In the pool (`kv_unified`) sequences share the cells of a prefix, and every token passes the cells of all sequences. Streams
share nothing, and llama.cpp computes those of a batch together only while their ids are adjacent (llama_batch_allocr::
split_equal): each gap makes it pass the weights once more. So prompts are read in streams of high ids, and answers lie in the
lowest, where a last one fills the gap that another leaves.
"""

from __future__ import annotations

from collections.abc import Collection

FEW_STEPS = 2
"""Steps of a prompt for which a gap among the answers is no longer than moving the answer later."""
GAP = 0.6
"""Seconds that a gap costs in a step, as a share of a step with one token (measured: 7.7 of 11.6 ms)."""
HORIZON = 32
"""Steps for which a move must pay: then the gap may be filled anyway."""


def stream_for_prompt(free: Collection[int], steps: float) -> int:
    """Return the free stream in which to read a prompt that takes so many steps."""
    return min(free) if steps <= FEW_STEPS else max(free)


def relocation(
    answering: dict[int, tuple[int, int]], free: Collection[int], step_seconds: float, move_seconds: float
) -> tuple[int, int] | None:
    """Return the stream whose answer should move, and the free one to which it should, if that pays.

    `answering` tells of each stream the tokens that it holds and those that its answer may still have; a step with one token
    takes `step_seconds`, moving a token `move_seconds`.
    """
    if not free or not answering:
        return None
    source = max(answering)
    rest = answering.keys() - {source}
    beside = (stream for stream in sorted(free) if stream - 1 in rest or stream + 1 in rest)
    target = next((stream for stream in beside if gaps(rest | {stream}) < gaps(answering)), None)
    if target is None:
        return None
    held, left = answering[source]
    pays = GAP * step_seconds * min(left, HORIZON) > move_seconds * held
    return (source, target) if pays else None


def gaps(streams: Collection[int]) -> int:
    """Return the number of gaps between ids: with none, a batch is computed in one go."""
    return sum(stream + 1 not in streams for stream in streams) - 1 if streams else 0
