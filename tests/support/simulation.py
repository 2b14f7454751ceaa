"""A scheduler on a clock of its own, by which steps take what a machine's costs say: what plans do to clients."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections import Counter
from collections.abc import Sequence as Seq

from locallab.engine.adapters import BASE, AdapterSet
from locallab.engine.answer import Answer
from locallab.engine.chunking import work
from locallab.engine.costs import StepCosts
from locallab.engine.limits import Limits
from locallab.engine.request import SamplingParams
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import Sequence
from locallab.engine.step_plan import Chunk
from locallab.engine.totals import Totals
from tests.support.fake_llama import FakeModel

ARRIVAL = 0.001
"""Seconds until a client sends its next request, and between clients that begin together."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Seconds of a batch: of its answers and of its prompts a constant, so much a token, so much a cell."""

    decode: tuple[float, float, float] = (0.0045, 0.0040, 11e-6)
    prompt: tuple[float, float, float] = (0.004, 0.00295, 1.1e-6)

    def seconds(self, chunks: list[Chunk], limits: Limits) -> float:
        cells, prompts = work(chunks, limits)
        n_answers = sum(chunk.count for chunk in chunks if chunk.is_answer)
        n_prompts = sum(chunk.count for chunk in chunks) - n_answers
        total = 0.0
        for count, costs, passed in ((n_answers, self.decode, cells), (n_prompts, self.prompt, prompts)):
            if count:
                total += costs[0] + costs[1] * count + costs[2] * passed
        return total


@dataclasses.dataclass
class Result:
    """What clients saw: `tokens` in `seconds`, the seconds until each `first` token and the `gaps` between two. `chunks` are
    those of prompts in each step."""

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = dataclasses.field(default_factory=list)
    gaps: list[float] = dataclasses.field(default_factory=list)
    chunks: list[list[int]] = dataclasses.field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def quantile(values: Seq[float], share: float) -> float:
    """Return the least value that such a share of all does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def simulate(
    limits: Limits,
    clients: Seq[Seq[tuple[int, int]]],
    machine: Machine | None = None,
    adapters: Seq[AdapterSet] = (),
) -> Result:
    """Let each client send its requests (tokens of prompt and of answer) one after the other, with its `adapters` if there are
    any, and return what they see."""
    made = _Simulation(limits, clients, machine or Machine(), adapters or [BASE] * len(clients))
    while made.receive():
        made.step()
    return made.result


class _Simulation:
    def __init__(self, limits: Limits, clients: Seq[Seq[tuple[int, int]]], machine: Machine, adapters: Seq[AdapterSet]) -> None:
        self.result = Result()
        self._limits, self._machine, self._adapters = limits, machine, adapters
        self._costs = calibrated(machine)
        self._scheduler = Scheduler(limits, self._costs)
        self._totals = Totals(adapter_tokens=Counter())
        self._requests = [iter(requests) for requests in clients]
        self._arrivals = [(i * ARRIVAL, i) for i in range(len(clients))]
        self._clients: dict[int, int] = {}
        self._words = itertools.count()
        self._now = 0.0

    def receive(self) -> bool:
        """Submit what has arrived, or arrives next if there is nothing else. False: all is done."""
        if not (self._scheduler.running or self._scheduler.waiting or self._arrivals):
            self.result.seconds = self._now
            return False
        if not (self._scheduler.running or self._scheduler.waiting):
            self._now = max(self._now, self._arrivals[0][0])
        while self._arrivals and self._arrivals[0][0] <= self._now:
            when, client = heapq.heappop(self._arrivals)
            for n_prompt, n_answer in itertools.islice(self._requests[client], 1):
                self._submit(client, when, n_prompt, n_answer)
        return True

    def step(self) -> None:
        plan = self._scheduler.plan()
        self.result.chunks.append([chunk.count for batch in plan.batches for chunk in batch if not chunk.is_answer])
        for batch in plan.batches:
            seconds = self._machine.seconds(batch, self._limits)
            self._now += seconds
            n_answers = sum(chunk.count for chunk in batch if chunk.is_answer)
            n_prompts = sum(chunk.count for chunk in batch) - n_answers
            self._costs.observe(n_answers, n_prompts, seconds, *work(batch, self._limits))
            self._scheduler.commit(batch)
            for chunk in batch:
                if chunk.last:
                    self._answer(chunk.sequence)

    def _submit(self, client: int, when: float, n_prompt: int, n_answer: int) -> None:
        prompt = list(itertools.islice(self._words, n_prompt))
        answer = Answer(SamplingParams(temperature=0), FakeModel())  # type: ignore[arg-type]
        id = len(self._clients)
        self._clients[id] = client
        sequence = Sequence(id, prompt, n_prompt, n_prompt + n_answer, answer, lambda event: None, submitted=when)
        sequence.adapters = self._adapters[client]
        self._scheduler.submit(sequence)

    def _answer(self, sequence: Sequence) -> None:
        if sequence.last_token is None:
            self.result.first.append(self._now - sequence.submitted)
        else:
            self.result.gaps.append(self._now - sequence.last_token)
        self._totals.tokens(sequence, 1, self._now)
        self._scheduler.append(sequence, [next(self._words)])
        self.result.tokens += 1
        if len(sequence.tokens) == sequence.limit:
            self._scheduler.finish(sequence)
            heapq.heappush(self._arrivals, (self._now + ARRIVAL, self._clients[sequence.id]))


def calibrated(machine: Machine) -> StepCosts:
    """Return costs that know what an engine measures when it loads a model."""
    costs = StepCosts()
    for n_decode, n_prompt in ((1, 0), (0, 64)):
        parts = machine.prompt if n_prompt else machine.decode
        costs.observe(n_decode, n_prompt, parts[0] + parts[1] * (n_decode + n_prompt))
    return costs


def streams(parallel: int, step_seconds: float = 0.2, heads: int = 9, threads: int = 2, tile: int = 64) -> Limits:
    """Return the limits of an engine on a CPU whose requests have a stream each."""
    return Limits(
        cells=4096 * parallel,
        batch=2048,
        parallel=parallel,
        slots=parallel,
        cache_cells=0,
        step_seconds=step_seconds,
        tile=tile,
        heads=heads,
        threads=threads,
        layout="streams",
        even=True,
    )
