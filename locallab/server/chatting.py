"""From a chat request, whatever its dialect, to what the engine is asked."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from locallab.chat.control_tokens import guarded, pieces
from locallab.chat.turn import ChatRequest, Turn, plan
from locallab.engine.request import Constraint, ReasoningBudget, SamplingParams
from locallab.pool import Loaded
from locallab.server.generate import Job
from locallab.server.prompts import tokenized


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A turn and its jobs, one for each answer that is wanted. An `urgent` one goes ahead of others."""

    turn: Turn
    jobs: list[Job]
    urgent: bool = False


async def ask(loaded: Loaded, request: ChatRequest, params: SamplingParams, n: int = 1) -> Asked:
    """Renders, tokenises, and compiles what has to be enforced. Raises InvalidField for what the model cannot do."""
    info = loaded.engine.info
    request = dataclasses.replace(request, messages=guarded(request.messages, loaded.markup))
    turn = plan(request, loaded.template, info.control_tokens)
    prompt = await tokenized(loaded, pieces(turn.prompt))
    params = dataclasses.replace(
        await constrained(loaded, params, turn.constraint),
        visible=tuple(info.control_tokens[text] for text in turn.visible),
        reasoning=_budget(request, turn),
    )
    return Asked(turn, spread([prompt], params, n))


async def constrained(loaded: Loaded, params: SamplingParams, constraint: Constraint | None) -> SamplingParams:
    """The same, with the constraint compiled. Raises InvalidField for one that cannot be honoured."""
    if constraint is None:
        return params
    await asyncio.to_thread(loaded.engine.prepare, constraint)
    return dataclasses.replace(params, constraint=constraint)


def spread(prompts: Sequence[Sequence[int]], params: SamplingParams, n: int) -> list[Job]:
    """`n` answers to each prompt, next to each other; of a seed each answer has its own."""
    seeds = [None if params.seed is None else (params.seed + i) & 0xFFFFFFFF for i in range(n)]
    return [(prompt, dataclasses.replace(params, seed=seed)) for prompt in prompts for seed in seeds]


def _budget(request: ChatRequest, turn: Turn) -> ReasoningBudget | None:
    if request.thinking.budget is None or turn.tags is None:
        return None
    return ReasoningBudget(request.thinking.budget, turn.tags.opening, turn.tags.end, turn.open)
