"""Which replica gets a request: the one where it costs least, by the prefixes and the work that each has. Pure.

Of a request's prompt a replica computes what it does not have. So the price of a replica is the work that is ahead of the
request plus the tokens of the prompt that are missing there, and the lower price wins: a longer prefix, unless its queue is
longer by more than the prefix saves. Prices are compared for a few candidates: of each of the longest prefixes that are held
anywhere the less loaded of two random holders, and of all replicas the less loaded of two ("the power of two choices",
Mitzenmacher 1996).

A table knows the prefixes that each replica publishes, about once a second, and those that it is about to have, because a
request was sent there. Work on a prefix that a request shares is not ahead of it: it waits for that work in any case, and
anywhere else it would be done once more. So a new system prompt is computed where it came first until the answers there take
more than it does.
"""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Hashable, Iterable, Mapping, Sequence

from locallab.cluster.prefixes import CHARACTERS, EDGES

ANSWER = 64
"""Tokens of a prompt that an answer under way counts as."""

LEVELS = 3
"""Lengths of held prefixes that are compared, the longest first."""

Replica = Hashable


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
    """What a replica tells of itself: a number that rises, the prefixes it holds, and the tokens of its work, done or not
    begun, by whoever sent it."""

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
        for each in kept:
            self._states.setdefault(each, _State())

    def forget(self, replica: Replica) -> None:
        """Forget a replica, if it is known."""
        state = self._states.pop(replica, None)
        if state is None:
            return
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
        for digest in told.held & state.pending.keys():
            del state.pending[digest]
        late = {digest for digest, number in state.recent.items() if number <= told.number}
        for digest in late:
            del state.recent[digest]
        for digest in (before | late) - told.held:
            if not state.has(digest):
                self._drop(digest, replica)
        state.others = 0
        state.others = max(0, told.work - state.work)

    def send(self, request: Hashable, route: Route, replica: Replica) -> None:
        """Count a request that goes to this replica, under a name of its own, until `end`."""
        state = self._states.get(replica)
        if state is None:
            return
        self.end(request)
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
            if digest not in state.expected:
                state.recent[digest] = state.published.number + 2

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

    def choose(self, route: Route, among: Sequence[Replica] | None = None) -> list[Replica]:
        """Return the replicas to try, the best first: the candidates by price, then the rest of `among` in a random order.

        `among` defaults to all; of those the table may know some only.
        """
        known = [each for each in (self._states if among is None else among) if each in self._states]
        unknown = [each for each in among or () if each not in self._states]
        allowed = dict.fromkeys(known)
        candidates: dict[Replica, None] = {}
        levels = 0
        for digest in reversed(route.digests):
            holders = [each for each in self._holders.get(digest, ()) if each in allowed and each not in candidates]
            if holders:
                candidates[self._lighter(holders)] = None
                levels += 1
                if levels == LEVELS:
                    break
        if known:
            candidates[self._lighter(known)] = None
        ranked = sorted(candidates, key=lambda each: (self.price(route, each), -self.reuse(route, each)[0]))
        rest = [each for each in known if each not in candidates]
        self._rng.shuffle(rest)
        return [*ranked, *rest, *unknown]

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
