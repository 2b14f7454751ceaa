"""LoRA adapters: what a model is loaded with, and the sets of them that requests are computed with. Pure.

An adapter adds the product of two small matrices to each of some weights. llama.cpp computes a batch with one set of adapters,
so that requests with different ones take turns (`turns`). What a set computes is of no use to another: each has prefixes of its
own in the cache, because the set's `mark` is part of their owner.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Sequence
from pathlib import Path

from locallab.errors import InvalidField

MOST_SCALE = 100.0
"""Largest scale of an adapter, in either direction."""

MARK = " lora:"
"""Begins the mark of a set, which ends an owner."""

Scales = Sequence[tuple[int | str, float]]
"""Adapters, by id or by name, with their scales."""


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter to load: its name, its file, and the scale that it has where a request chooses it by name."""

    name: str
    path: Path
    scale: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter that is loaded. `task` and `prompt_prefix` are what its file says of its use; `digest` is that of the file."""

    name: str
    scale: float
    task: str
    prompt_prefix: str
    digest: str


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterSet:
    """The adapters of a batch: their ids, which are their places in the order of the load, with the scales, none of which is 0.

    `names` are theirs. `mark` tells sets apart by the content of the files, so that it holds for other processes too.
    """

    scales: tuple[tuple[int, float], ...] = ()
    names: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    mark: str = dataclasses.field(default="", compare=False)


BASE = AdapterSet()
"""The model alone."""


def chosen(adapters: Sequence[AdapterInfo], scales: Scales) -> AdapterSet:
    """Return the set of these of the model's `adapters`; those that are not named are off, of one named twice the last scale
    counts. Raises InvalidField for an adapter that the model does not have, and for a scale out of range."""
    found: dict[int, float] = {}
    for which, scale in scales:
        found[_place(adapters, which)] = _single(scale)
    return _set(adapters, {id: scale for id, scale in sorted(found.items()) if scale})


def _set(adapters: Sequence[AdapterInfo], scales: dict[int, float]) -> AdapterSet:
    if not scales:
        return BASE
    parts = [f"{adapters[id].digest}*{scale!r}" for id, scale in scales.items()]
    names = tuple(adapters[id].name for id in scales)
    return AdapterSet(tuple(scales.items()), names, MARK + "+".join(parts))


def _place(adapters: Sequence[AdapterInfo], which: int | str) -> int:
    for id, each in enumerate(adapters):
        if which == id or which == each.name:
            return id
    known = ", ".join(f"{id} ({each.name})" for id, each in enumerate(adapters)) or "none"
    raise InvalidField("lora", f"this model has no adapter {which!r}; it has {known}")


def _single(scale: float) -> float:
    """Return the scale as llama.cpp has it, in 32 bits. Raises InvalidField."""
    if not (math.isfinite(scale) and abs(scale) <= MOST_SCALE):
        raise InvalidField("lora", f"a scale must be between -{MOST_SCALE:g} and {MOST_SCALE:g}, got {scale}")
    (rounded,) = struct.unpack("f", struct.pack("f", scale))
    return float(rounded)


def person(owner: str) -> str:
    """Return whose prefix it is, without the mark of its adapters."""
    return owner.partition(MARK)[0]


def mark(owner: str) -> str:
    """Return the mark of the adapters that a prefix of this owner was computed with; empty for the model alone."""
    return "".join(owner.partition(MARK)[1:])
