"""Load: one plan run against one server, and what came of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from locallab.load.client import Answer, ChatClient
from locallab.load.request import Plan, Request


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answers of one turn: those of the lanes, and those to the prompts that arrived meanwhile."""

    lanes: list[Answer]
    arrivals: list[Answer]
    seconds: float
    client_cpu: float  # CPU seconds that the load generator itself used

    @property
    def answers(self) -> list[Answer]:
        """Every answer of the turn."""
        return self.lanes + self.arrivals


def run(plan: Plan, client: ChatClient) -> Outcome:
    """Run `plan`: every lane at once, each sending its next request when the last one is answered."""
    return asyncio.run(_run(plan, client))


async def _run(plan: Plan, client: ChatClient) -> Outcome:
    started, cpu = time.perf_counter(), time.process_time()
    decoding = [asyncio.Event() for _ in plan.lanes]
    lanes = [asyncio.create_task(_lane(requests, client, event)) for requests, event in zip(plan.lanes, decoding, strict=True)]
    arrivals: list[Answer] = []
    if plan.arrivals:
        await asyncio.gather(*(event.wait() for event in decoding))
        arrivals = [await client.ask(request) for request in plan.arrivals]
    answers = [answer for lane in await asyncio.gather(*lanes) for answer in lane]
    return Outcome(answers, arrivals, time.perf_counter() - started, time.process_time() - cpu)


async def _lane(requests: list[Request], client: ChatClient, decoding: asyncio.Event) -> list[Answer]:
    try:
        return [await client.ask(request, decoding.set) for request in requests]
    finally:
        decoding.set()
