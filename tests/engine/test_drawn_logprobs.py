"""Probabilities after the samplers: those that tokens are drawn by, in a running engine."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from locallab.engine import SamplingParams, TextEngine
from locallab.engine.llama import Model
from locallab.engine.request import Constraint
from locallab.engine.sampler import Sampler
from locallab.engine.token_rules import TokenRules
from tests.support import tiny_gguf
from tests.support.live_engine import Answer, running
from tests.support.tiny_grammar import MORE

PROMPT = [10, 20, 30, 40]
DRAWN = {"temperature": 0.9, "top_k": 5, "top_p": 1.0, "min_p": 0.0, "seed": 3, "max_tokens": 12}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEngine]:
    with running(tiny_gguf.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama", more=MORE)) as engine:
        yield engine


def answer(engine: TextEngine, **params: object) -> Answer:
    listener = Answer()
    engine.submit(PROMPT, SamplingParams(**{**DRAWN, **params}), listener)  # type: ignore[arg-type]
    return listener.ended()


@pytest.mark.parametrize(
    "params",
    [{}, {"xtc_probability": 1.0, "xtc_threshold": 0.05}, {"top_k": 0, "top_p": 0.5}, {"mirostat": 2}, {"temperature": 0}],
)
def test_they_are_those_of_what_is_drawn(engine: TextEngine, params: dict[str, object]) -> None:
    found = answer(engine, logprobs=20, drawn_logprobs=True, **params)
    assert found.tokens == answer(engine, **params).tokens
    assert len(found.logprobs) == len(found.tokens)
    for each in found.logprobs:
        chances = {token: logprob for token, _, logprob in each.top}
        assert list(chances.values()) == sorted(chances.values(), reverse=True)
        assert sum(map(math.exp, chances.values())) == pytest.approx(1) or len(chances) == 20
        assert chances[each.token] == each.logprob or len(chances) == 20
        if "temperature" in params:
            assert chances == {each.token: 0.0}
        elif not params:
            assert len(chances) == 5


def test_a_grammar_comes_before(engine: TextEngine) -> None:
    def constrained(*choices: str) -> Answer:
        constraint = Constraint("choice", json.dumps(choices), "choice")
        return answer(engine, logprobs=5, drawn_logprobs=True, constraint=constraint)

    found = constrained("aaaa", "abbb")
    assert found.text in ("aaaa", "abbb")
    assert {piece[:1] for _, piece, _ in found.logprobs[0].top} == {b"a"}
    for each in found.logprobs:
        assert sum(math.exp(logprob) for _, _, logprob in each.top) == pytest.approx(1)
    for each in constrained("zq").logprobs[1:]:  # nothing else may follow
        assert each.logprob == 0.0 and [token for token, _, _ in each.top] == [each.token]


def test_tokens_are_drawn_as_often_as_they_say(tmp_path) -> None:
    model = Model(tiny_gguf.write(tmp_path / "tiny.gguf", "llama"), 0)
    params = SamplingParams(temperature=1.0, top_k=3, top_p=1.0, min_p=0.0, seed=7)
    sampler = Sampler(params, model, 64, TokenRules())
    logits = np.linspace(-4, 4, model.n_vocab, dtype=np.float32)
    counts: Counter[int] = Counter()
    for _ in range(2000):
        token, chances = sampler.draw_shown(logits)
        counts[token] += 1
    assert set(counts) == set(chances) and len(chances) == 3
    for token, logprob in chances.items():
        assert counts[token] / 2000 == pytest.approx(math.exp(logprob), abs=0.05)
    sampler.close()
    model.close()
