"""Samplers that run where the logits are, as part of a step's graph (llama_set_sampler), so that the host need not look through
the whole vocabulary for every token.

A sampler belongs to a slot. To attach or to detach one makes llama.cpp plan its buffers anew with the next step (sched_reserve:
measured 1 to 12 ms with few samplers, 30 to 130 ms with 64), so samplers stay, and where requests differ too much to share them
all sampling goes to the host for a while.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import llama_cpp

from locallab.engine import sampler_chain
from locallab.engine.context import Context
from locallab.engine.request import SamplingParams
from locallab.engine.token_rules import TokenRules

_SAME = ("temperature", "top_k", "top_p", "min_p", "min_keep", "samplers")
"""The parameters of a plan; all others are off."""

_OFF = SamplingParams(top_p=1.0, min_p=0.0)

PAUSE = 512
"""Batches for which the host samples after a slot's sampler had to go."""


@dataclasses.dataclass(frozen=True, slots=True)
class DevicePlan:
    """How a sampler on the device draws. Equal plans can share one, since draws without a seed are independent anyway."""

    params: SamplingParams
    bias: tuple[tuple[int, float], ...]


def device_plan(params: SamplingParams, rules: TokenRules, ends: Iterable[int], *, greedy: bool) -> DevicePlan | None:
    """Return how a request can be sampled on the device; None if anything needs its logits, or its draws, on the host. `ends`
    are the tokens that end an answer. Without `greedy`, requests that take the likeliest token stay on the host.

    A seeded request draws on the host, where its random numbers are its own. Without `top_k` in front, llama.cpp would sort the
    whole vocabulary and copy the logits and the probabilities of all of it to the host. For a greedy request it copies the
    logits in any case (`llm_graph_context::build_sampling` exports them), so that only the search for the largest is saved.
    """
    needs_host = (
        *(params.constraint, params.logprobs is not None, params.prompt_logprobs, params.reasoning),
        *(params.allowed_token_ids, rules.bad_words, params.min_tokens, rules.dry, params.mirostat),
        *(sampler_chain.penalizes(params), sampler_chain.excludes_top(params), params.dynatemp_range),
    )
    if any(needs_host):
        return None
    likeliest = sampler_chain.is_greedy(params)
    if likeliest and not greedy:
        return None
    if not likeliest:
        narrows = params.top_k > 0 and _first_active(params) == "top_k"
        adapts = params.adaptive_target >= 0 or "adaptive_p" in params.samplers
        if params.seed is not None or not narrows or params.typical_p < 1 or params.top_n_sigma > 0 or adapts:
            return None
    banned = rules.banned | (frozenset(ends) if params.ignore_eos else frozenset())
    bias = (*rules.bias, *((token, -float("inf")) for token in sorted(banned)))
    if likeliest:
        return DevicePlan(dataclasses.replace(_OFF, temperature=0.0), bias)
    return DevicePlan(dataclasses.replace(_OFF, **{name: getattr(params, name) for name in _SAME}), bias)


def _first_active(params: SamplingParams) -> str | None:
    active = {"top_k": params.top_k > 0, "top_p": params.top_p < 1, "min_p": params.min_p > 0, "temperature": True}
    return next((name for name in params.samplers if active.get(name)), None)


class DeviceSamplers:
    """The samplers attached to a context. Owned by the engine's thread."""

    def __init__(self, context: Context, n_vocab: int) -> None:
        self._context = context
        self._n_vocab = n_vocab
        self._attached: dict[int, tuple[DevicePlan, sampler_chain.Part]] = {}
        self._batches = 0
        self._resume = 0.0

    def arrange(self, wanted: Mapping[int, DevicePlan | None]) -> None:
        """Prepare a batch that has an output for each of these slots: attach what they want, None for the host, where that
        leaves the other samplers as they are. Else detach all, and leave all to the host for a while."""
        self._batches += 1
        if any(slot in self._attached and self._attached[slot][0] != plan for slot, plan in wanted.items()):
            self.close()
            self._resume = self._batches + PAUSE
        if self._batches >= self._resume:
            for slot, plan in wanted.items():
                if plan is not None and slot not in self._attached:
                    self._attach(slot, plan)

    def draw(self, slot: int, output: int) -> int | None:
        """Return the token drawn for entry `output` of the last batch (llama_sampler_sample); None where the host samples."""
        found = self._attached.get(slot)
        return int(llama_cpp.llama_sampler_sample(found[1], self._context.handle, output)) if found else None

    def close(self) -> None:
        """Detach and free all samplers. Before the context is freed."""
        for slot, (_, chain) in self._attached.items():
            llama_cpp.llama_set_sampler(self._context.handle, slot, None)
            llama_cpp.llama_sampler_free(chain)
        self._attached.clear()

    def _attach(self, slot: int, plan: DevicePlan) -> None:
        chain = sampler_chain.build(plan.params, self._n_vocab, plan.bias, 0, None)
        if llama_cpp.llama_set_sampler(self._context.handle, slot, chain):
            self._attached[slot] = (plan, chain)
        else:  # tensors split over several GPUs: llama.cpp then takes no sampler at all
            llama_cpp.llama_sampler_free(chain)
            self._resume = math.inf
