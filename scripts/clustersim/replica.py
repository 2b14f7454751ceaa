"""A simulated replica: its prefix cache, its queue, and the steps in which it computes."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable

from clustersim.costs import Costs
from clustersim.traces import Request
from locallab.cluster.routing import ANSWER, Published

STEP = 0.2
"""Seconds that a step may take while somebody reads, as with `--step-ms`."""

CHUNK = 512
"""Tokens of a prompt in a step at most."""

LEAST = 16
"""Tokens of a prompt in a step at least."""

PUBLISHED = 2048
"""Digests that a replica publishes at most: 16 KB, those that were used last."""


@dataclasses.dataclass(eq=False, slots=True)
class Job:
    """A request at a replica: the session it is a part of, when it came, how many tokens were cached and are computed, those it
    will have computed by then, and how much of the answer there is."""

    request: Request
    session: int
    front: int
    came: float
    promised: int = 0
    cached: int = 0
    computed: int = 0
    said: int = 0
    first: float = 0.0

    @property
    def cells(self) -> int:
        return self.computed + self.said


class Cache:
    """The prefixes that a replica holds, of `capacity` tokens; the one that was not used for longest goes first."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.size = capacity, 0
        self._tokens: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._latest: frozenset[int] | None = None

    def __contains__(self, digest: int) -> bool:
        return digest in self._tokens

    def use(self, request: Request) -> None:
        """Hold the prefixes of a request, each one used later than what continues it."""
        self._latest = None
        digests, ends = request.route.digests, request.tokens
        for at in range(len(digests) - 1, -1, -1):
            if digests[at] in self._tokens:
                self._tokens.move_to_end(digests[at])
            else:
                self._tokens[digests[at]] = tokens = ends[at] - (ends[at - 1] if at else 0)
                self.size += tokens
        while self.size > self.capacity:
            self.size -= self._tokens.popitem(last=False)[1]

    def latest(self) -> frozenset[int]:
        """Return the digests that are published, those that were used last."""
        if self._latest is None:
            self._latest = frozenset(itertools.islice(reversed(self._tokens), PUBLISHED))
        return self._latest


class Replica:
    """Computes one prompt after the other beside its answers, as the engine does: a step has a token of each answer and a chunk
    of the oldest prompt. What arrives within a step waits for its end."""

    def __init__(self, costs: Costs, parallel: int, capacity: int) -> None:
        self.cache = Cache(capacity)
        self.busy = 0.0
        self.version = 0
        self._costs, self._parallel = costs, parallel
        self._waiting: collections.deque[Job] = collections.deque()
        self._prompt: Job | None = None
        self._answers: list[Job] = []
        self._expected: collections.Counter[int] = collections.Counter()
        self._work = self._number = 0
        self._began, self._seconds, self._steps, self._chunk = 0.0, 0.0, 0, 0

    @property
    def load(self) -> int:
        """The tokens of work that is not done, an answer counting as the router counts it."""
        return self._work

    @property
    def requests(self) -> int:
        return len(self._waiting) + len(self._answers) + (self._prompt is not None)

    def publish(self) -> Published:
        self._number += 1
        return Published(self._number, self.cache.latest(), self._work)

    def arrive(self, job: Job, now: float) -> float | None:
        """Queue a request. Return when the step ends, if that is news; an earlier time is then void."""
        job.promised = job.request.prompt - self._known(job.request, self._expected)
        self._expected.update(job.request.route.digests)
        self._work += job.promised + ANSWER
        self._waiting.append(job)
        if not self._steps:
            return self._begin(now)
        if self._prompt is None and self._steps > 1 and len(self._answers) < self._parallel:
            self._steps = min(self._steps, max(1, math.ceil((now - self._began) / self._seconds)))
            return self._ends()
        return None

    def end(self, now: float) -> tuple[list[Job], float | None]:
        """End the step. Return who is answered, and when the next step ends if there is one."""
        self.busy += self._seconds * self._steps
        done, first = [], self._began + self._seconds
        for job in self._answers:
            job.said += self._steps
            if job.said >= job.request.answer:
                done.append(job)
        if done:
            self._answers = [job for job in self._answers if job.said < job.request.answer]
            self._work -= ANSWER * len(done)
        if (prompt := self._prompt) is not None:
            prompt.computed += self._chunk
            if prompt.computed == prompt.request.prompt:
                prompt.first, prompt.said = first, 1
                self._prompt = None
                self._computed(prompt)
                self._answers.append(prompt)
        self._steps = 0
        return done, self._begin(now)

    def _computed(self, job: Job) -> None:
        self._work -= job.promised
        for digest in job.request.route.digests:
            self._expected[digest] -= 1
            if not self._expected[digest]:
                del self._expected[digest]
        self.cache.use(job.request)

    def _begin(self, now: float) -> float | None:
        if self._prompt is None and self._waiting and len(self._answers) < self._parallel:
            self._prompt = job = self._waiting.popleft()
            job.cached = job.computed = min(self._known(job.request), job.request.prompt - 1)
        if self._prompt is None and not self._answers:
            return None
        answers = len(self._answers)
        decoding = self._costs.decoding(answers, sum(job.cells for job in self._answers))
        self._began, self._steps, self._chunk = now, 1, 0
        self._seconds = decoding
        if self._prompt is not None:
            room = max(LEAST, self._costs.fitting(STEP - decoding)) if answers else CHUNK
            self._chunk = min(CHUNK, room, self._prompt.request.prompt - self._prompt.computed)
            self._seconds += self._costs.computing(self._chunk, self._prompt.computed)
        else:
            self._steps = max(1, min(job.request.answer - job.said for job in self._answers))
        return self._ends()

    def _ends(self) -> float:
        self.version += 1
        return self._began + self._steps * self._seconds

    def _known(self, request: Request, expected: Iterable[int] = ()) -> int:
        """Return the tokens of a request's prompt that are cached, or expected to be."""
        known = 0
        for digest, tokens in zip(request.route.digests, request.tokens, strict=True):
            if digest not in self.cache and digest not in expected:
                break
            known = tokens
        return known
