"""Drafts change no answer: the real engine, tiny models, whatever is drafted."""

from __future__ import annotations

import collections
import random
from pathlib import Path

import pytest

from locallab.engine import SamplingParams, TextEngine
from locallab.engine.costs import StepCosts
from tests.support import tiny_gguf
from tests.support.live_engine import Answer, ask, check, running, start

REWINDS = ("llama", "gemma3", "gpt-oss", "qwen2vl")
each_layout = pytest.mark.parametrize("layout", ["unified", "streams"])


@pytest.fixture(scope="module", params=tiny_gguf.ARCHITECTURES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("models") / f"{request.param}.gguf", request.param)


@pytest.fixture(autouse=True)
def drafts_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model computes a token in no time; whether a draft pays differs between runs."""
    monkeypatch.setattr(StepCosts, "decode", lambda *_: 0.1)
    monkeypatch.setattr(StepCosts, "verify", lambda *_: 0.0)


def words(seed: int, n: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(tiny_gguf.FIRST_PLAIN, tiny_gguf.N_VOCAB) for _ in range(n)]


def damaged(tokens: list[int], every: int) -> tuple[int, ...]:
    """Return a prediction with a wrong token here and there."""
    return tuple(tiny_gguf.FIRST_PLAIN if i % every == every - 1 else token for i, token in enumerate(tokens))


def accepted(answer: Answer) -> int:
    last = answer.ended().last
    assert last is not None and last.usage is not None
    return last.usage.accepted_tokens


@each_layout
@pytest.mark.parametrize("every", [200, 9, 6])
def test_a_greedy_answer_is_what_it_is_without_drafts(path: Path, layout: str, every: int) -> None:
    """Also far beyond the window of a model that has one, and several at once."""
    prompts = [words(seed, 30 + seed) for seed in range(3)]
    with running(path, drafts=False) as engine:
        said = [ask(engine, prompt, 150).tokens for prompt in prompts]
    with running(path, kv_layout=layout, kv_tokens=1024) as engine:
        alone = ask(engine, prompts[0], 150, prediction=damaged(said[0], every))
        together = [
            start(engine, prompt, 150, prediction=damaged(tokens, every), logprobs=1)
            for prompt, tokens in zip(prompts, said, strict=True)
        ]
        again = ask(engine, [*prompts[0], *alone.tokens[:40]], 20)
    for prompt, answer in zip([prompts[0], *prompts], [alone, *together], strict=True):
        check(path, prompt, answer.ended().tokens)
        assert (accepted(answer) > 0) == (path.stem in REWINDS), "it drafts where it cannot go back, or not where it can"
        assert [each.token for each in answer.logprobs] in ([], answer.tokens)
    check(path, [*prompts[0], *alone.tokens[:40]], again.tokens)


@pytest.mark.parametrize("penalty", [{"repeat_penalty": 1.3}, {"min_tokens": 20}, {"bad_words": ("a",)}])
def test_rules_of_sampling_hold_at_each_token(tmp_path: Path, penalty: dict[str, object]) -> None:
    path = tiny_gguf.write(tmp_path / "llama.gguf", "llama")
    prompt = words(7, 40)
    with running(path, drafts=False) as engine:
        said = ask(engine, prompt, 60, **penalty).tokens
    with running(path) as engine:
        answer = ask(engine, prompt, 60, prediction=damaged(said, 12), **penalty)
    assert accepted(answer) > 20
    check(path, prompt, answer.tokens, **penalty)


def sampled(engine: TextEngine, prompt: list[int], count: int, prediction: tuple[int, ...]) -> collections.Counter[int]:
    """Return how often each token is the last of three, over answers with seeds of their own."""
    answers = []
    for seed in range(count):
        params = SamplingParams(temperature=1.0, top_k=8, seed=seed, max_tokens=3, ignore_eos=True, prediction=prediction)
        answers.append(Answer())
        engine.submit(prompt, params, answers[-1])
    found = collections.Counter(answer.ended().tokens[-1] for answer in answers)
    assert not prediction or sum(map(accepted, answers)) > count / 10
    return found


def test_samples_follow_the_same_distribution(tmp_path: Path) -> None:
    """Pearson's test of homogeneity on the third token, with drafts of the likeliest tokens and without."""
    path, count = tiny_gguf.write(tmp_path / "llama.gguf", "llama"), 600
    prompt = words(3, 20)
    with running(path, parallel=16, kv_tokens=4096, queue=1000) as engine:
        likely = tuple(ask(engine, prompt, 3).tokens)
        ours = sampled(engine, prompt, count, likely)
        theirs = sampled(engine, prompt, count, ())
    common = [token for token in ours | theirs if ours[token] + theirs[token] >= 10]
    rows = [(ours[token], theirs[token]) for token in common]
    rest = tuple(count - sum(row[i] for row in rows) for i in range(2))
    rows += [rest] if sum(rest) >= 10 else []
    statistic = sum((a - b) ** 2 / (a + b) for a, b in rows)
    freedom = len(rows) - 1
    assert freedom >= 3, "the model draws too few tokens for the test to say anything"
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
