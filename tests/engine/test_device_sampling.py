"""Samplers in the graph of a step draw what those on the host draw; llama.cpp's CPU backend runs them too."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import llama_cpp
import pytest

from locallab.engine import SamplingParams, TextEngine, llama
from locallab.engine.costs import StepCosts
from locallab.engine.device_sampling import DevicePlan, device_plan
from locallab.engine.request import Constraint
from locallab.engine.sampler_chain import DryRules
from locallab.engine.token_rules import TokenRules
from tests.support import tiny_gguf
from tests.support.live_engine import Answer, agree, ask, check, running, start

PROMPT = [tiny_gguf.BOS, *range(30, 50)]
WARM = {"temperature": 1.0, "top_k": 4, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("models") / "llama.gguf", "llama")


@pytest.fixture
def engine(path: Path) -> Iterator[TextEngine]:
    with running(path, device_sampling="on", drafts=False) as engine:
        yield engine


def begin(engine: TextEngine, prompt: list[int], n: int, **params: Any) -> Answer:
    answer = Answer()
    answer.id = engine.submit(prompt, SamplingParams(max_tokens=n, **{"ignore_eos": True, **params}), answer)
    return answer


PLANS: dict[str, tuple[dict[str, Any], bool]] = {
    "greedy": ({"temperature": 0}, True),
    "greedy with a seed, which means nothing": ({"temperature": 0, "seed": 1}, True),
    "as llama.cpp samples by default": ({}, True),
    "a bias": ({"logit_bias": ((5, 2.0),)}, True),
    "stop strings": ({"stop": ("a",)}, True),
    "a seed": ({"seed": 1}, False),
    "the whole vocabulary": ({"top_k": 0}, False),
    "top_p first": ({"samplers": ("top_p", "top_k", "temperature")}, False),
    "a grammar": ({"constraint": Constraint("regex", "a+")}, False),
    "log probabilities": ({"logprobs": 0}, False),
    "log probabilities of a greedy answer": ({"temperature": 0, "logprobs": 0}, False),
    "those of the prompt": ({"prompt_logprobs": True}, False),
    "penalties": ({"repeat_penalty": 1.1}, False),
    "penalties of a greedy answer": ({"temperature": 0, "presence_penalty": 1.0}, False),
    "allowed tokens": ({"allowed_token_ids": (4, 5)}, False),
    "a least length": ({"min_tokens": 3}, False),
    "mirostat": ({"mirostat": 2}, False),
    "xtc": ({"xtc_probability": 0.5}, False),
    "typical_p": ({"typical_p": 0.5}, False),
    "top_n_sigma": ({"top_n_sigma": 1.0}, False),
    "adaptive_p": ({"adaptive_target": 0.5}, False),
    "a varying temperature": ({"dynatemp_range": 0.5}, False),
}


@pytest.mark.parametrize(("params", "planned"), PLANS.values(), ids=PLANS)
def test_what_needs_the_logits_is_sampled_on_the_host(params: dict[str, Any], planned: bool) -> None:
    assert (device_plan(SamplingParams(**params), TokenRules(), (), greedy=True) is not None) == planned
    if params.get("temperature") == 0:
        assert device_plan(SamplingParams(**params), TokenRules(), (), greedy=False) is None


def test_rules_of_ours_need_the_logits(path: Path) -> None:
    assert device_plan(SamplingParams(), TokenRules(bad_words=((4, 5),)), (), greedy=True) is None
    assert device_plan(SamplingParams(), TokenRules(dry=mock.Mock(spec=DryRules)), (), greedy=True) is None


def test_equal_samplers_have_equal_plans() -> None:
    assert device_plan(SamplingParams(max_tokens=3), TokenRules(), (), greedy=True) == device_plan(
        SamplingParams(), TokenRules(), (), greedy=True
    )
    assert device_plan(SamplingParams(top_k=3), TokenRules(), (), greedy=True) != device_plan(
        SamplingParams(), TokenRules(), (), greedy=True
    )
    rules = TokenRules(bias=((4, 1.0),), banned=frozenset({7}))
    plan = device_plan(SamplingParams(temperature=0, ignore_eos=True), rules, [2], greedy=True)
    assert isinstance(plan, DevicePlan)
    assert plan.bias == ((4, 1.0), (2, -math.inf), (7, -math.inf))


def test_a_greedy_answer_is_the_host_s(engine: TextEngine, path: Path) -> None:
    with mock.patch.object(llama_cpp, "llama_sampler_sample", side_effect=llama_cpp.llama_sampler_sample) as drawn:
        answer = ask(engine, PROMPT, 40)
    assert drawn.call_count == 40
    check(path, PROMPT, answer.tokens)


def test_drafts_are_verified_on_the_host(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCosts, "decode", lambda *_: 0.1)
    monkeypatch.setattr(StepCosts, "verify", lambda *_: 0.0)
    with running(path, device_sampling="on") as engine:
        answer = ask(engine, PROMPT, 40)
        assert engine.totals.accepted_tokens + engine.totals.rejected_tokens > 0
    check(path, PROMPT, answer.tokens)


def test_forbidden_tokens_do_not_come(engine: TextEngine, path: Path) -> None:
    first = ask(engine, PROMPT, 20).tokens
    bias = ((first[0], -math.inf), (first[5], 3.0))
    answer = ask(engine, PROMPT, 20, logit_bias=bias)
    assert first[0] not in answer.tokens
    check(path, PROMPT, answer.tokens, logit_bias=bias)


def test_requests_that_need_the_host_run_beside_others(engine: TextEngine, path: Path) -> None:
    """More requests than slots, so that a slot's sampler comes and goes."""
    kinds: list[dict[str, Any]] = [{}, {"logprobs": 0}, {"repeat_penalty": 1.3}, {"logit_bias": ((40, 1.0),)}] * 3
    prompts = [[tiny_gguf.BOS, *range(20 + index, 40 + index)] for index in range(len(kinds))]
    answers = [start(engine, prompt, 15, **kind) for prompt, kind in zip(prompts, kinds, strict=True)]
    with running(path) as host:
        for prompt, kind, answer in zip(prompts, kinds, answers, strict=True):
            answer.ended()
            assert len(answer.tokens) == 15
            if "logprobs" in kind:
                agree(answer, ask(host, prompt, 15, **kind))
    for prompt, kind, answer in zip(prompts[:4], kinds, answers, strict=False):
        check(path, prompt, answer.tokens, **{name: value for name, value in kind.items() if name != "logprobs"})


def test_draws_have_the_probabilities_of_the_request(engine: TextEngine) -> None:
    with mock.patch.object(llama_cpp, "llama_sampler_sample", side_effect=llama_cpp.llama_sampler_sample) as sampled:
        begin(engine, PROMPT, 1, **WARM).ended()
        assert sampled.call_count == 1
    n = 600
    drawn = [begin(engine, PROMPT, 1, **WARM) for _ in range(4)]
    counts: collections.Counter[int] = collections.Counter()
    for _ in range(n // 4):
        for answer in drawn:
            counts[answer.ended().tokens[0]] += 1
        drawn = [begin(engine, PROMPT, 1, **WARM) for _ in range(4)]
    top = ask(engine, PROMPT, 1, logprobs=4).logprobs[0].top
    chances = {token: math.exp(logprob) for token, _, logprob in top}
    total = sum(chances.values())
    assert counts.keys() <= chances.keys()
    chi = sum((counts[token] - n * p / total) ** 2 / (n * p / total) for token, p in chances.items())
    assert chi < 27.9, counts  # 3 degrees of freedom: beyond in 4 of a million runs


def test_slots_keep_their_sampler_until_one_has_to_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the host samples, so that requests which differ do not plan the buffers anew all the time."""
    monkeypatch.setattr("locallab.engine.device_sampling.PAUSE", 8)
    with (
        running(path, device_sampling="on", drafts=False, parallel=1) as engine,
        mock.patch.object(llama_cpp, "llama_set_sampler", side_effect=llama_cpp.llama_set_sampler) as attached,
    ):
        for _ in range(3):
            begin(engine, PROMPT, 5, **WARM).ended()
        assert attached.call_count == 1
        for _ in range(2):
            begin(engine, PROMPT, 3).ended()  # six batches
            assert attached.call_count == 2
        begin(engine, PROMPT, 4).ended()
        assert attached.call_count == 3
        ask(engine, PROMPT, 5, logprobs=0)
        assert attached.call_count == 4


def test_a_context_that_takes_no_samplers_leaves_all_to_the_host(path: Path) -> None:
    with (
        running(path, device_sampling="on") as engine,
        mock.patch.object(llama_cpp, "llama_set_sampler", return_value=False) as no,
    ):
        answer = ask(engine, PROMPT, 20)
        assert no.call_count == 1
    check(path, PROMPT, answer.tokens)


def test_a_gpu_draws_but_finds_the_likeliest_on_the_host(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "supports_gpu", lambda: True)
    with (
        running(path, gpu_layers=-1) as engine,
        mock.patch.object(llama_cpp, "llama_set_sampler", side_effect=llama_cpp.llama_set_sampler) as attached,
    ):
        ask(engine, PROMPT, 5)
        assert attached.call_count == 0
        begin(engine, PROMPT, 5).ended()
        assert attached.call_count == 1


@pytest.mark.parametrize("setting", ["off", "auto"])
def test_a_cpu_samples_on_the_host_by_default(path: Path, setting: str) -> None:
    with (
        running(path, device_sampling=setting) as engine,
        mock.patch.object(llama_cpp, "llama_set_sampler", side_effect=llama_cpp.llama_set_sampler) as attached,
    ):
        begin(engine, PROMPT, 5).ended()
        assert attached.call_count == 0


@pytest.mark.parametrize("layout", ["streams", "unified"])
@pytest.mark.parametrize("architecture", ["mamba", "lfm2", "gemma3", "qwen35"])
def test_every_kind_of_memory(tmp_path: Path, architecture: str, layout: str) -> None:
    path = tiny_gguf.write(tmp_path / "model.gguf", architecture)
    prompts = [[tiny_gguf.BOS, *range(20 + index, 40 + index)] for index in range(6)]
    with running(path, device_sampling="on", kv_layout=layout) as engine:
        answers = [start(engine, prompt, 10) for prompt in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):
            check(path, prompt, answer.ended().tokens)
