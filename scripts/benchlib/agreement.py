"""Whether two engines gave the same greedy answer, and whether rounding alone explains it if they did not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from locallab.load.client import Answer


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer as the API's logprobs tell it, with the logprobs of the likeliest tokens at its place."""

    piece: bytes
    logprob: float
    likeliest: Mapping[bytes, float]

    def lead(self, other: bytes) -> float:
        """How much likelier the token was than `other`; infinite if that is none of the likeliest."""
        return self.logprob - self.likeliest.get(other, -math.inf)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two answers beside each other.

    `at` is the place of the first token in which they differ, None if there is none, and `gap` how far apart its two
    candidates are there, in the answer that has them further apart. `drift` is the largest difference between the
    logprobs of an equal token before.
    """

    at: int | None
    gap: float
    drift: float

    def within(self, noise: float) -> bool:
        """Whether sums that round differently by up to `noise` explain all of it."""
        return max(self.gap, self.drift) <= noise


def compare(one: Sequence[Token], other: Sequence[Token]) -> Agreement:
    """Compares two answers to one prompt up to the first different token; what follows answers another text.

    Answers without tokens show nothing: they differ.
    """
    drift = 0.0
    if not one and not other:
        return Agreement(0, math.inf, drift)
    for at, (mine, theirs) in enumerate(zip_longest(one, other)):
        if mine is None or theirs is None:
            return Agreement(at, math.inf, drift)
        if mine.piece != theirs.piece:
            return Agreement(at, max(mine.lead(theirs.piece), theirs.lead(mine.piece)), drift)
        drift = max(drift, abs(mine.logprob - theirs.logprob))
    return Agreement(None, 0.0, drift)


def describe(agreements: Sequence[Agreement]) -> str:
    """How many answers were equal, and how far the others and the logprobs were apart."""
    different = [each for each in agreements if each.at is not None]
    places = ", ".join(f"{each.at} ({each.gap:.2f})" for each in sorted(different, key=lambda each: each.at or 0))
    drift = max((each.drift for each in agreements), default=0.0)
    equal = f"{len(agreements)} answers compared, {len(agreements) - len(different)} equal"
    first = f"; first different token, and how far its candidates are apart: {places}" if different else ""
    return f"{equal}; logprobs of equal tokens at most {drift:.2f} apart{first}"


def problems(agreements: Sequence[Agreement], noise: float) -> list[str]:
    """What is wrong with them, a line each: nothing was compared, or rounding does not explain a difference."""
    if not agreements:
        return ["no greedy answer was whole, so none was compared"]
    unexplained = [each for each in agreements if not each.within(noise)]
    if not unexplained:
        return []
    return [f"{len(unexplained)} of {len(agreements)} answers differ by more than rounding explains ({noise:g} nats)"]


class ClientLeft(Exception):
    """The client has heard enough."""


@dataclass
class Transcript(Answer):
    """An answer whose text and tokens are kept, by choice. Taking the event number `leave_after` raises ClientLeft."""

    leave_after: int | None = None
    texts: dict[int, str] = field(default_factory=dict)
    said: dict[int, list[Token]] = field(default_factory=dict)

    def take(self, line: bytes, now: float) -> None:
        """Takes one line of the event stream, which arrived at `now`."""
        super().take(line, now)
        if line.startswith(b"data:") and not self.done:
            for choice in json.loads(line[5:]).get("choices") or []:
                self._hear(choice)
        if self.leave_after is not None and sum(map(len, self.arrivals.values())) >= self.leave_after:
            raise ClientLeft

    def _hear(self, choice: Mapping[str, Any]) -> None:
        index, delta = choice.get("index", 0), choice.get("delta") or {}
        self.texts[index] = self.texts.get(index, "") + (delta.get("content") or "")
        said = (choice.get("logprobs") or {}).get("content") or []
        self.said.setdefault(index, []).extend(map(_token, said))


def _token(entry: Mapping[str, Any]) -> Token:
    return Token(_piece(entry), entry["logprob"], {_piece(each): each["logprob"] for each in entry["top_logprobs"]})


def _piece(entry: Mapping[str, Any]) -> bytes:
    return bytes(entry["bytes"]) if entry.get("bytes") else str(entry["token"]).encode()
