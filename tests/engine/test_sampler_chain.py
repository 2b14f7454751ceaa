"""Sampler chains against what their definitions say of the same logits."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from locallab.engine import SamplingParams
from locallab.engine.llama import Model
from locallab.engine.sampler_chain import DryRules, build, is_greedy
from locallab.engine.token_rules import RuleBook
from tests.support import tiny_gguf

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "seed": 1}
LOGITS = np.linspace(-4, 4, tiny_gguf.N_VOCAB, dtype=np.float32)
FIRST = tiny_gguf.N_VOCAB - 1
"""The likeliest token."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(tiny_gguf.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama"), 0)
    yield model
    model.close()


def shares(
    model: Model, logits: npt.NDArray[np.float32], seen: Sequence[int] = (), **params: object
) -> tuple[int, dict[int, float]]:
    """Return the token that a chain draws behind `seen`, and the probabilities of the tokens it draws from."""
    sampling = SamplingParams(**{**OFF, **params})  # type: ignore[arg-type]
    dry = RuleBook(model, 512).rules(sampling).dry
    chain = build(sampling, model.n_vocab, (), 512, dry)
    for token in seen:
        llama_cpp.llama_sampler_accept(chain, token)
    data = (llama_cpp.llama_token_data * len(logits))(*((i, float(x), 0.0) for i, x in enumerate(logits)))
    array = llama_cpp.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
    found = {array.data[i].id: array.data[i].p for i in range(array.size) if array.data[i].logit > -math.inf}
    drawn = array.data[array.selected].id
    llama_cpp.llama_sampler_free(chain)
    return drawn, found


def test_top_n_sigma_keeps_what_is_near_the_best(model):
    kept = shares(model, LOGITS, top_n_sigma=0.5)[1]
    near = LOGITS.max() - 0.5 * LOGITS.std() <= LOGITS
    assert sorted(kept) == np.flatnonzero(near).tolist() and len(kept) < len(LOGITS)
    assert len(shares(model, LOGITS, top_n_sigma=-1.0)[1]) == len(LOGITS)


def test_xtc_leaves_the_least_likely_of_the_likely(model):
    logits = np.full(model.n_vocab, -20, np.float32)
    logits[[5, 6, 7]] = 3.0, 2.5, 2.0
    kept = shares(model, logits, xtc_probability=1.0, xtc_threshold=0.1)[1]
    assert 7 in kept and not {5, 6} & set(kept)
    assert {5, 6, 7} <= set(shares(model, logits, xtc_probability=0.0)[1])
    assert {5, 6, 7} <= set(shares(model, logits, xtc_probability=1.0, xtc_threshold=0.6)[1])


def test_xtc_comes_before_greed(model):
    logits = np.full(model.n_vocab, -20, np.float32)
    logits[[5, 6, 7]] = 3.0, 2.5, 2.0
    assert shares(model, logits, temperature=0.0, xtc_probability=1.0)[0] == 7
    assert shares(model, logits, temperature=0.0)[0] == 5


@pytest.mark.parametrize(("repeated", "exponent"), [(2, 0), (3, 1), (4, 2)])
def test_dry_penalizes_what_would_go_on_with_a_repetition(model, repeated, exponent):
    run = [40, 41, 42, 43][-repeated:]
    seen = [*run, 44, 200, *run]
    params = {"dry_multiplier": 0.8, "dry_base": 1.5, "dry_sequence_breakers": ()}
    plain, dried = shares(model, LOGITS, seen)[1], shares(model, LOGITS, seen, **params)[1]
    ratio = (dried[44] / dried[45]) / (plain[44] / plain[45])
    assert math.log(ratio) == pytest.approx(-0.8 * 1.5**exponent, rel=1e-3)


def test_dry_does_not_see_across_a_breaker_nor_beyond_its_window(model):
    run = [40, 41, 42]
    piece = model.piece(41).decode()
    params = {"dry_multiplier": 5.0, "dry_sequence_breakers": ()}
    seen = [*run, 44, 200, *run]
    plain = shares(model, LOGITS, seen)[1][44]
    assert shares(model, LOGITS, seen, **params)[1][44] < plain / 2
    assert shares(model, LOGITS, seen, **params | {"dry_sequence_breakers": (piece,)})[1][44] == pytest.approx(plain)
    assert shares(model, LOGITS, seen, **params | {"dry_penalty_last_n": 4})[1][44] == pytest.approx(plain)
    assert shares(model, LOGITS, seen, **params | {"dry_allowed_length": 4})[1][44] == pytest.approx(plain)


def test_the_temperature_varies_with_the_entropy(model):
    flat, steep = np.zeros(model.n_vocab, np.float32), LOGITS * 20
    flat[FIRST] = 0.5
    for logits in (flat, steep):
        p = np.exp(logits - logits.max(), dtype=np.float64)
        p /= p.sum()
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum() / math.log(len(p))
        heat = 0.5 + (1.5 - 0.5) * entropy**2
        expected = np.exp((logits - logits.max()) / heat)
        found = shares(model, logits, dynatemp_range=0.5, dynatemp_exponent=2.0)[1]
        assert found[FIRST] == pytest.approx(expected[FIRST] / expected.sum(), rel=1e-3)


def test_no_temperature_divides_by_zero(model):
    steep = LOGITS * 20
    assert shares(model, steep, temperature=1e-40)[0] == FIRST
    assert shares(model, steep, temperature=0.0, dynatemp_range=1.0, dynatemp_exponent=10.0)[0] == FIRST
    assert shares(model, steep, [FIRST], repeat_penalty=1e-40, samplers=("penalties", "temperature"))[0] == FIRST


def test_the_order_is_the_request_s(model):
    few = {"top_k": 3, "temperature": 1.0}
    assert len(shares(model, LOGITS, samplers=("top_k",), **few)[1]) == 3
    assert len(shares(model, LOGITS, samplers=("temperature",), **few)[1]) == len(LOGITS)
    hot = {"temperature": 5.0, "top_p": 0.3}
    first, last = ("temperature", "top_p"), ("top_p", "temperature")
    assert len(shares(model, LOGITS, samplers=first, **hot)[1]) > len(shares(model, LOGITS, samplers=last, **hot)[1])


def test_min_keep_is_what_every_sampler_leaves(model):
    assert len(shares(model, LOGITS, top_p=1e-6)[1]) == 1
    assert len(shares(model, LOGITS, top_p=1e-6, min_keep=7)[1]) == 7
    assert len(shares(model, LOGITS, top_p=1e-6, min_keep=2**31 - 1)[1]) == len(LOGITS)


def test_mirostat_cuts_at_its_surprise(model):
    bits = -np.log2(np.exp(LOGITS) / np.exp(LOGITS).sum())
    kept = shares(model, LOGITS, mirostat=2, mirostat_tau=4.0, top_k=1)[1]
    assert sorted(kept) == np.flatnonzero(bits <= 8.0).tolist()
    kept = shares(model, LOGITS, mirostat=1, mirostat_tau=2.0)[1]
    assert 1 <= len(kept) < len(LOGITS) and max(kept) == FIRST
    assert is_greedy(SamplingParams(temperature=0, mirostat=1))
    assert shares(model, LOGITS, mirostat=1, temperature=0.0)[0] == FIRST


def test_adaptive_p_prefers_its_probability(model):
    logits = np.full(model.n_vocab, -30, np.float32)
    logits[[5, 6, 7]] = np.log([0.6, 0.3, 0.1])
    found = shares(model, logits, adaptive_target=0.3)[1]
    assert max(found, key=lambda token: found[token]) == 6
    found = shares(model, logits, samplers=("adaptive_p",))[1]
    assert found[5] == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize(
    "draw", [{}, {"mirostat": 1}, {"mirostat": 2}, {"adaptive_target": 0.5}, {"xtc_probability": 0.5}], ids=str
)
def test_a_seed_fixes_every_draw(model, draw):
    tokens = [shares(model, LOGITS, seed=seed, **draw)[0] for seed in (3, 3, 4, 5, 6)]
    assert tokens[0] == tokens[1] and len(set(tokens)) > 1


def test_windows_allocate_no_more_than_the_context(model):
    huge = 2**31 - 1
    params = SamplingParams(dry_multiplier=1.0, dry_penalty_last_n=huge, dry_allowed_length=huge)
    DryRules(model.vocabulary, params, 512).copy()
