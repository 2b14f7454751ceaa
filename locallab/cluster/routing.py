"""Which replica gets a request: the one where it costs least, by the prefixes and the work that each has. Pure.

Of a request's prompt a replica computes what it does not have. So the price of a replica is the work that is ahead of the
request plus the tokens of the prompt that are missing there, and the lower price wins: a longer prefix, unless its queue is
longer by more than the prefix saves. Prices are compared for a few candidates: of each of the longest prefixes that are held
anywhere the less loaded of two random holders, and of all replicas the less loaded of two ("the power of two choices",
Mitzenmacher 1996).

Routers that know nothing of each other's newest requests send a new prompt to the same two, by consistent hashing, so that it
is not computed once for each of them. From then on it is spread at random: if all of them knew where next, all would go there.

A table knows the prefixes that each replica publishes, about once a second, and those that it is about to have, because a
request was sent there. Work on a prefix that a request shares is not ahead of it: it waits for that work in any case, and
anywhere else it would be done once more. So a new system prompt is computed where it came first until the answers there take
more than it does.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import hashlib
import itertools
import random
import struct
from collections.abc import Hashable, Iterable, Mapping, Sequence

from locallab.cluster.prefixes import CHARACTERS, EDGES

ANSWER = 64
"""Tokens of a prompt that an answer under way counts as."""

LEVELS = 3
"""Lengths of held prefixes that are compared, the longest first."""

FIRST = 4
"""The digest by which a new prompt is hashed, counted from 1; a prompt is new where nobody has it. To compute less than that
twice costs little."""

RECENT = 4096
"""Digests at most of requests that have ended, for each replica: one that publishes nothing does not fill the memory."""

Replica = Hashable
"""What a replica is called; its `str` is the same at every router."""


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """What a router is told of a request: the digests of its beginnings (`prefixes.digests`) and the characters of its text."""

    digests: tuple[int, ...] = ()
    length: int = 0

    @property
    def tokens(self) -> int:
        """The tokens of the prompt, about."""
        return self.length // CHARACTERS + 1


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """What a replica tells of itself: a number that rises, which begins at 1, the prefixes it holds, and the tokens of its
    work that is not done, by whoever sent it: what prompts lack, and ANSWER for each answer."""

    number: int = 0
    held: frozenset[int] = frozenset()
    work: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Sent:
    """A request that a replica has not answered. `parts` are the tokens that are computed for it, by the digest at whose edge
    they end; `rest` is its other work, in tokens."""

    replica: Replica
    digests: tuple[int, ...]
    parts: Mapping[int, int]
    rest: int


@dataclasses.dataclass(slots=True)
class _State:
    """One replica. `pending` are the parts of what was sent there, `expected` has the number of requests that bring a prefix,
    and `recent` the publication that is to have one whose requests have ended."""

    published: Published = dataclasses.field(default_factory=Published)
    expected: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    recent: dict[int, int] = dataclasses.field(default_factory=dict)
    pending: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    rest: int = 0
    others: int = 0

    @property
    def work(self) -> int:
        return self.rest + self.pending.total() + self.others

    def has(self, digest: int) -> bool:
        return digest in self.published.held or digest in self.expected or digest in self.recent


class Table:
    """The replicas of one model, as one router knows them. Every method but `choose` and `reuse` mutates it."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._states: dict[Replica, _State] = {}
        self._holders: dict[int, dict[Replica, None]] = {}
        self._sent: dict[Hashable, _Sent] = {}
        self._ring: list[tuple[int, Replica]] = []

    @property
    def replicas(self) -> Sequence[Replica]:
        return list(self._states)

    @property
    def size(self) -> int:
        """The number of digests, each counted once for each replica that has it."""
        return sum(map(len, self._holders.values()))

    def set_replicas(self, replicas: Iterable[Replica]) -> None:
        """Begin with new replicas, and forget those that are gone, with their prefixes and requests."""
        kept = dict.fromkeys(replicas)
        for gone in [each for each in self._states if each not in kept]:
            self.forget(gone)
        for each in kept.keys() - self._states.keys():
            points = struct.unpack("<8Q", hashlib.blake2b(str(each).encode()).digest())
            self._ring += [(point, each) for point in points]
        for each in kept:
            self._states.setdefault(each, _State())
        self._ring.sort(key=_point)

    def forget(self, replica: Replica) -> None:
        """Forget a replica, if it is known."""
        state = self._states.pop(replica, None)
        if state is None:
            return
        self._ring = [each for each in self._ring if each[1] != replica]
        for digest in {*state.published.held, *state.expected, *state.recent}:
            self._drop(digest, replica)
        for request in [request for request, sent in self._sent.items() if sent.replica == replica]:
            del self._sent[request]

    def publish(self, replica: Replica, told: Published) -> None:
        """Take what a replica tells of itself, unless it is known already. What it holds is computed: no longer pending."""
        state = self._states.get(replica)
        if state is None or told.number <= state.published.number:
            return
        before, state.published = state.published.held, told
        for digest in told.held - before:
            self._holders.setdefault(digest, {})[replica] = None
        for digest in [each for each in state.pending if each in told.held]:
            del state.pending[digest]
        late = [digest for digest, number in state.recent.items() if number <= told.number]
        for digest in late:
            del state.recent[digest]
        for digest in (before - told.held).union(late):
            if not state.has(digest):
                self._drop(digest, replica)
        state.others = 0
        state.others = max(0, told.work - state.work)

    def send(self, request: Hashable, route: Route, replica: Replica) -> None:
        """Count a request that goes to this replica, under a name of its own, until `end`."""
        self.end(request)
        state = self._states.get(replica)
        if state is None:
            return
        known = self.reuse(route, replica)[0]
        parts = {digest: _tokens(at + 1) - _tokens(at) for at, digest in enumerate(route.digests) if at >= known}
        sent = _Sent(replica, route.digests, parts, ANSWER + route.tokens - _tokens(len(route.digests)))
        self._sent[request] = sent
        state.rest += sent.rest
        state.pending.update(parts)
        state.expected.update(route.digests)
        for digest in route.digests:
            self._holders.setdefault(digest, {})[replica] = None

    def end(self, request: Hashable) -> None:
        """Count a request no more, if it is known: it was answered, or it failed. Its prefix is the replica's to publish: two
        publications later only what they had is still believed."""
        sent = self._sent.pop(request, None)
        state = self._states.get(sent.replica) if sent else None
        if sent is None or state is None:
            return
        state.rest -= sent.rest
        for digest, tokens in sent.parts.items():
            _take(state.pending, digest, tokens)
        for digest in sent.digests:
            _take(state.expected, digest, 1)
            state.recent.pop(digest, None)
            state.recent[digest] = state.published.number + 2
        for digest in list(itertools.islice(state.recent, max(0, len(state.recent) - RECENT))):
            del state.recent[digest]
            if not state.has(digest):
                self._drop(digest, sent.replica)

    def reuse(self, route: Route, replica: Replica) -> tuple[int, int]:
        """Return how many of the route's digests the replica has or will have, and the tokens up to there."""
        for at in range(len(route.digests), 0, -1):
            if replica in self._holders.get(route.digests[at - 1], ()):
                return at, _tokens(at)
        return 0, 0

    def price(self, route: Route, replica: Replica) -> int:
        """Return the tokens of work ahead of the request plus those of its prompt that the replica lacks."""
        state = self._states[replica]
        known, tokens = self.reuse(route, replica)
        shared = sum(state.pending[digest] for digest in route.digests[:known] if digest in state.pending)
        return state.work - shared + route.tokens - tokens

    def choose(self, route: Route, among: Iterable[Replica] | None = None) -> list[Replica]:
        """Return the replicas to try, the best first: the candidates by price, then the rest of `among` from a random one on,
        and those that the table does not know.

        `among` defaults to all.
        """
        given = self._states if among is None else dict.fromkeys(among)
        allowed = given if among is None else {each: None for each in given if each in self._states}
        candidates = self._holding(route, allowed)
        if allowed:
            candidates[self._lighter(self._homes(route, allowed) or list(allowed))] = None
        ranked = sorted(candidates, key=lambda each: self.price(route, each))
        rest = [each for each in allowed if each not in candidates]
        at = self._rng.randrange(len(rest)) if rest else 0
        return [*ranked, *rest[at:], *rest[:at], *(each for each in given if each not in self._states)]

    def _holding(self, route: Route, allowed: Mapping[Replica, object]) -> dict[Replica, None]:
        """Return one holder for each of the longest prefixes of a route that are held, the longest first: of equal prices it
        wins."""
        found: dict[Replica, None] = {}
        for digest in reversed(route.digests):
            holders = [each for each in self._holders.get(digest, ()) if each in allowed and each not in found]
            if holders:
                found[self._lighter(holders)] = None
                if len(found) == LEVELS:
                    break
        return found

    def _homes(self, route: Route, allowed: Mapping[Replica, object]) -> list[Replica]:
        """Return the two replicas to which a new prompt hashes, the same at every router; none if it is not new."""
        key = route.digests[:FIRST][-1] if route.digests else None
        if key is None or any(each in allowed for each in self._holders.get(key, ())):
            return []
        at = bisect.bisect(self._ring, key, key=_point)
        around = (self._ring[place % len(self._ring)][1] for place in range(at, at + len(self._ring)))
        return list(itertools.islice(dict.fromkeys(each for each in around if each in allowed), 2))

    def _lighter(self, replicas: Sequence[Replica]) -> Replica:
        two = replicas if len(replicas) <= 2 else self._rng.sample(replicas, 2)
        return min(self._rng.sample(two, len(two)), key=lambda each: self._states[each].work)

    def _drop(self, digest: int, replica: Replica) -> None:
        holders = self._holders.get(digest)
        if holders is not None:
            holders.pop(replica, None)
            if not holders:
                del self._holders[digest]


def _tokens(count: int) -> int:
    """Return the tokens up to the edge of this digest, counted from 1."""
    return EDGES[count - 1] // CHARACTERS if count else 0


def _take(counts: collections.Counter[int], digest: int, amount: int) -> None:
    if digest in counts:
        counts[digest] -= amount
        if counts[digest] <= 0:
            del counts[digest]


def _point(entry: tuple[int, Replica]) -> int:
    return entry[0]
