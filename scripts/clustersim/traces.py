"""What arrives at the routers: sessions of requests, with the digests of their texts. Deterministic by a seed."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence

from clustersim.costs import Costs
from locallab.cluster import prefixes
from locallab.cluster.routing import Route

THINK = 4.0
"""Mean seconds from an answer to the next request of its session."""

PARALLEL = 8
"""Answers of a replica at once, by which the work of a trace is counted."""

BURST = "new"
"""The group of the requests with the one new system prompt."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One request: `think` are the seconds since its session began (the first), or since the answer before. `tokens` has the
    tokens of a prompt up to the edge of each digest."""

    route: Route
    tokens: tuple[int, ...]
    answer: int
    think: float
    group: str = ""

    @property
    def prompt(self) -> int:
        return self.route.tokens


Session = tuple[Request, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """Sessions, the hit rate of one cache that forgets nothing, and the seconds in which all of them begin."""

    sessions: tuple[Session, ...]
    ideal: float
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Draft:
    """A session before its times are known: scope, bodies with the tokens of their answers, group."""

    turns: tuple[tuple[dict[str, object], int], ...]
    scope: str = ""
    group: str = ""


def make(workload: str, replicas: int, requests: int, load: float, seed: int, costs: Costs) -> Trace:
    """Return about `requests` requests for each replica, which arrive as fast as to need `load` of the replicas' time if no
    prefix were computed twice."""
    rng = random.Random(f"{workload} {replicas} {seed}")
    drafts: list[_Draft] = []
    count = 0
    for draft in WORKLOADS[workload](rng, replicas):
        drafts.append(draft)
        count += len(draft.turns)
        if count >= requests * replicas:
            break
    routed = [[(_route(body, draft.scope), answer) for body, answer in draft.turns] for draft in drafts]
    seconds, ideal = _work([turn for turns in routed for turn in turns], costs)
    duration = seconds / (load * replicas)
    sessions = []
    for draft, turns in zip(drafts, routed, strict=True):
        begin = rng.uniform(0.5, 0.6) if draft.group == BURST else rng.random()
        thinks = [begin * duration, *(rng.expovariate(1 / THINK) for _ in turns[1:])]
        sessions.append(
            tuple(_request(route, answer, think, draft.group) for (route, answer), think in zip(turns, thinks, strict=True))
        )
    return Trace(tuple(sessions), ideal, duration)


def _route(body: dict[str, object], scope: str) -> Route:
    text = prefixes.text_of(body)
    return Route(prefixes.digests(scope, text), len(text))


def _request(route: Route, answer: int, think: float, group: str) -> Request:
    return Request(route, TOKENS[: len(route.digests)], answer, think, group)


TOKENS = tuple(edge // prefixes.CHARACTERS for edge in prefixes.EDGES)
"""The tokens up to the edge of each digest."""


def _work(turns: Sequence[tuple[Route, int]], costs: Costs) -> tuple[float, float]:
    """Return the seconds of all requests and the share of cached tokens, in one cache that forgets nothing."""
    seen: set[int] = set()
    seconds, cached, total = 0.0, 0, 0
    for route, answer in turns:
        known = bisect.bisect_left(range(len(route.digests)), 1, key=lambda at: route.digests[at] not in seen)
        hit = TOKENS[known - 1] if known else 0
        seen.update(route.digests)
        cached, total = cached + hit, total + route.tokens
        seconds += costs.computing(route.tokens - hit, hit)
        seconds += answer * costs.decoding(PARALLEL, PARALLEL * (route.tokens + answer / 2)) / PARALLEL
    return seconds, cached / total


class _Writer:
    """Writes texts that share nothing."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._names = itertools.count()

    def text(self, least: int, most: int) -> str:
        length = self.rng.randint(least, most)
        name = f"{next(self._names)} "
        return (name * (length // len(name) + 1))[:length]

    def turns(
        self, system: str, count: int, first: tuple[int, int], later: tuple[int, int]
    ) -> Iterator[tuple[dict[str, object], int]]:
        messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        for at in range(count):
            messages.append({"role": "user", "content": self.text(*(later if at else first))})
            answer = self.rng.randint(32, 96)
            yield {"messages": list(messages)}, answer
            messages.append({"role": "assistant", "content": self.text(answer * 4, answer * 4)})


class _Systems:
    """System prompts, of which the one with rank n is as popular as 1/n (Zipf)."""

    def __init__(self, writer: _Writer, count: int, least: int = 2000, most: int = 8000) -> None:
        self._texts = [writer.text(least, most) for _ in range(count)]
        self._weights = list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))
        self._rng = writer.rng

    def draw(self) -> str:
        return self._rng.choices(self._texts, cum_weights=self._weights)[0]


def turns(rng: random.Random, replicas: int) -> Iterator[_Draft]:
    """Yield conversations that grow and share nothing with each other."""
    writer = _Writer(rng)
    while True:
        yield _Draft(tuple(writer.turns("", rng.randint(4, 8), (1000, 3000), (200, 800))))


def shared(rng: random.Random, replicas: int) -> Iterator[_Draft]:
    """Yield single requests with one of four system prompts for each replica, and texts of their own."""
    writer = _Writer(rng)
    systems = _Systems(writer, 4 * replicas)
    while True:
        yield _Draft(tuple(writer.turns(systems.draw(), 1, (200, 800), (0, 0))))


def mixed(rng: random.Random, replicas: int) -> Iterator[_Draft]:
    """Yield conversations of one to six turns with such system prompts."""
    writer = _Writer(rng)
    systems = _Systems(writer, 4 * replicas)
    while True:
        yield _Draft(tuple(writer.turns(systems.draw(), rng.randint(1, 6), (200, 800), (200, 800))))


def burst(rng: random.Random, replicas: int) -> Iterator[_Draft]:
    """Yield what `shared` does, and of ten requests one with a long new system prompt: these come in a tenth of the time."""
    writer = _Writer(rng)
    others, new = shared(rng, replicas), "one new prompt: " + writer.text(8000, 8000)
    while True:
        yield from itertools.islice(others, 9)
        yield _Draft(tuple(writer.turns(new, 1, (200, 800), (0, 0))), group=BURST)


def tenant(rng: random.Random, replicas: int) -> Iterator[_Draft]:
    """Yield what `mixed` does, by eight tenants who share nothing, of whom the first one sends half."""
    writer = _Writer(rng)
    systems = [_Systems(writer, max(1, replicas // 2)) for _ in range(8)]
    while True:
        at = 0 if rng.random() < 0.5 else rng.randrange(1, 8)
        drawn = tuple(writer.turns(systems[at].draw(), rng.randint(1, 6), (200, 800), (200, 800)))
        yield _Draft(drawn, prefixes.scope_of("model", "", f"tenant {at}"), group=f"tenant {at}")


WORKLOADS: dict[str, Callable[[random.Random, int], Iterator[_Draft]]] = {
    each.__name__: each for each in (turns, shared, mixed, burst, tenant)
}
