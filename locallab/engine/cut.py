"""Chooses how many tokens of a prompt to compute at once. Pure."""

from __future__ import annotations

from collections.abc import Callable

Cost = Callable[[int, int], float]
"""Seconds of a chunk of so many tokens that begins behind so many others."""

LEAST = 16
"""Least tokens of a chunk, however slow the machine, unless the prompt has fewer left."""
PARTS = 4
"""Numbers of equal parts that are tried for a prompt."""
READERS = 0.25
"""Exponent of the time by which a step is longer than readers tolerate: one twice as long must be 1.19 times as fast."""


def cut(pending: int, start: int, most: int, tile: int, spent: float, patience: float, cost: Cost) -> int:
    """Return the length of the next chunk of a prompt with `pending` tokens behind `start` computed ones: 1 to `most`.

    It is the one with which the rest (of a long prompt the next `most` tokens) is computed soonest in chunks of this length,
    where each step takes `spent` seconds for others. A step is the worse, the longer it is than `patience`.
    """
    ahead = pending if pending < 2 * most else most

    def price(count: int) -> float:
        whole, rest = divmod(ahead, count)
        total = whole * (spent + cost(count, start + (whole - 1) * count // 2))
        if rest:
            total += spent + cost(rest, start + whole * count)
        late: float = max(1.0, (spent + cost(count, start)) / patience) ** READERS
        return total * late

    return min(sorted(_lengths(pending, min(pending, most), tile), reverse=True), key=price)


def _lengths(pending: int, most: int, tile: int) -> set[int]:
    """Return the lengths to choose from: whole tiles, some that are less, and equal parts of what is pending."""
    steps = range(LEAST, tile or 4 * LEAST, LEAST)
    larger = range(tile, most, tile) if tile else [LEAST << i for i in range(2, 8)]
    fewest = -(-pending // most)
    parts = (-(-pending // (fewest + i)) for i in range(PARTS))
    return {most, *(length for length in (*steps, *larger, *parts) if LEAST <= length < most)}
