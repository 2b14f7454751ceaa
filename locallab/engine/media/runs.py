"""Pictures and sounds among the tokens of a prompt: runs of ids that stand for embeddings. Pure.

The ids are negative, which no token's is, and follow from the content: the same picture has the same ids in every prompt, so
that the prefix cache, which compares ids, shares it like text, and nothing else of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]
"""[tokens, width of the model's input]."""

Places = npt.NDArray[np.int32]
"""[4, tokens]: time, row, column and a number not in use of each token of a picture, relative to where that begins. All have
the same time."""


@dataclasses.dataclass(eq=False, slots=True)
class Run:
    """`count` embeddings, which take the place of tokens from index `start` of a prompt on, and `positions` of its context.

    `key` is the digest of their content. Where `whole`, attention inside it goes both ways, so that one llama_decode computes
    all of it. `places` are those of a picture for a model whose positions have several dimensions, else None. `source` is what
    they are encoded from; `embeddings` are there once that is done. `field` names the request's field in errors.
    """

    start: int
    count: int
    positions: int
    key: bytes
    field: str
    whole: bool = False
    places: Places | None = None
    source: Any = None
    embeddings: Embeddings | None = None

    @property
    def end(self) -> int:
        return self.start + self.count

    def at(self, start: int) -> Run:
        """Return the same run at another index."""
        return dataclasses.replace(self, start=start)


class Prompt(list[int]):
    """Token ids, among them those of `runs`, in order."""

    __slots__ = ("runs",)

    def __init__(self, tokens: Iterable[int] = (), runs: Iterable[Run] = ()) -> None:
        super().__init__(tokens)
        self.runs = tuple(runs)


def ids(key: bytes, count: int) -> list[int]:
    """Return the ids of a run: `count` negative numbers of 32 bits, the same for the same key."""
    drawn = np.frombuffer(hashlib.shake_128(key).digest(4 * count), np.int32)
    found: list[int] = (drawn | np.int32(-(2**31))).tolist()
    return found


def joined(parts: Iterable[Sequence[int]]) -> Prompt:
    """Return one prompt of several parts, of which some may have runs."""
    tokens, runs = Prompt(), []
    for part in parts:
        runs += [run.at(len(tokens) + run.start) for run in getattr(part, "runs", ())]
        tokens += part
    tokens.runs = tuple(runs)
    return tokens


def run_at(runs: Sequence[Run], index: int) -> Run | None:
    """Return the run that a token of a prompt is in; None for text."""
    return next((run for run in runs if run.start <= index < run.end), None)


def until(runs: Sequence[Run], index: int) -> int | None:
    """Return where what is at `index`, text or a run, ends; None for text that no run follows."""
    return next((run.end if run.start <= index else run.start for run in runs if run.end > index), None)


def uncut(runs: Sequence[Run], length: int) -> int:
    """Return the longest length of at most `length` that does not cut a run."""
    return next((run.start for run in runs if run.start < length < run.end), length)


def position(runs: Sequence[Run], index: int) -> int:
    """Return the position in the context of the token at `index`; all of a run with `places` have the same."""
    shift = 0
    for run in runs:
        if run.start >= index:
            break
        if run.places is not None:
            shift += index - run.start if index < run.end else run.count - run.positions
    return index - shift
