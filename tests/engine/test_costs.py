from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locallab.engine.costs import DraftCosts, StepCosts
from tests.support.simulation import streams

LIMITS = streams(1)

CHUNKS = [  # context, tokens, milliseconds: SmolLM2-135M Q4_1 with an f16 cache, two threads of a Xeon, least of several
    *[(0, 4, 21.6), (0, 16, 41.2), (0, 32, 76.3), (0, 48, 109.9), (0, 63, 143.6), (0, 64, 139.6), (0, 96, 203.1)],
    *[(0, 128, 267.0), (0, 192, 386.8), (0, 256, 542.6), (0, 300, 606.6), (0, 384, 812.7), (0, 448, 965.7), (0, 512, 1086.5)],
    *[(300, 4, 24.1), (300, 16, 53.7), (300, 32, 94.1), (300, 48, 131.1), (300, 63, 172.8), (300, 64, 158.1), (300, 96, 230.5)],
    *[(300, 128, 290.2), (300, 192, 436.1), (300, 256, 584.1), (300, 300, 682.3), (300, 384, 872.2), (300, 512, 1163.0)],
    *[(1000, 64, 206.8), (1000, 128, 367.7), (1000, 192, 552.9), (1000, 256, 711.7), (1000, 320, 889.2), (1000, 384, 1103.9)],
    *[(1000, 448, 1269.1), (1000, 512, 1459.6), (3000, 64, 331.7), (3000, 128, 593.1), (3000, 192, 874.1), (3000, 256, 1105.6)],
    *[(3000, 320, 1426.9), (3000, 384, 1668.8), (3000, 448, 1992.1), (3000, 512, 2177.1)],
]


def test_nothing_is_promised_before_anything_is_known():
    costs = StepCosts()
    assert costs.chunk(4, 1.0) == 0
    assert costs.decode(4) == costs.prompt(64) == 0.0
    assert costs.per_token() == 0.0


def test_estimates_are_right_on_a_recorded_trace():
    """Within 15%, once chunks of many lengths at many contexts have been seen."""
    costs = StepCosts()
    for start, count, ms in random.Random(1).sample(CHUNKS * 2, 2 * len(CHUNKS)):
        costs.observe(0, count, ms / 1000, 0, LIMITS.work(count, start))
    for start, count, ms in CHUNKS:
        assert costs.prompt(count, LIMITS.work(count, start)) == pytest.approx(ms / 1000, rel=0.15)


@settings(max_examples=30)
@given(
    st.tuples(st.floats(1e-4, 0.02), st.floats(1e-5, 0.01), st.floats(1e-8, 1e-5)),
    st.lists(st.tuples(st.integers(1, 512), st.integers(0, 8000)), min_size=40, max_size=60),
)
def test_what_is_exact_is_learnt_exactly(price: tuple[float, float, float], chunks: list[tuple[int, int]]) -> None:
    def true(count: int, start: int) -> float:
        return price[0] + price[1] * count + price[2] * LIMITS.work(count, start)

    costs = StepCosts()
    for count, start in chunks:
        costs.observe(0, count, true(count, start), 0, LIMITS.work(count, start))
    for count, start in chunks[-8:]:
        assert costs.prompt(count, LIMITS.work(count, start)) == pytest.approx(true(count, start), rel=0.15)


@given(st.floats(1e-4, 0.1), st.floats(1e-5, 0.01), st.integers(1, 64))
def test_a_chunk_fills_what_the_answers_leave(decode, per_token, n_decode):
    costs = StepCosts()
    costs.observe(n_decode, 0, decode)
    costs.observe(0, 100, 100 * per_token)
    assert costs.chunk(n_decode, costs.decode(n_decode) + 50 * per_token) == pytest.approx(50, abs=2)
    assert costs.chunk(n_decode, decode / 2) == 0


def test_a_batch_that_nobody_waited_for_counts_with_the_next() -> None:
    costs = StepCosts()
    costs.observe(8, 0, 0.01)
    costs.defer(0, 300, 0.001)
    costs.defer(0, 200, 0.001)
    assert costs.per_token() == 0
    costs.observe(8, 0, 0.058)
    assert costs.prompt(500) == pytest.approx(0.05, rel=0.1)
    costs.observe(8, 0, 0.01)
    assert costs.decode(8) == pytest.approx(0.01, rel=0.1)
    costs.defer(0, 500, 0.001)
    before = costs.verify(1, 3)
    costs.observe_drafts(8, 1, 3, 9.0)  # waited for the prompt too, so it tells nothing of drafts
    assert costs.verify(1, 3) == before
    costs.observe(8, 0, 0.01)
    assert costs.prompt(500) == pytest.approx(0.05, rel=0.1)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 512), st.floats(0, 10), st.integers(0, 9000)), max_size=60))
def test_estimates_are_never_negative(batches: list[tuple[int, int, float, int]]) -> None:
    costs = StepCosts()
    for n_decode, n_prompt, seconds, cells in batches:
        if n_decode + n_prompt:
            costs.observe(n_decode, n_prompt, seconds, cells * n_decode, cells * n_prompt)
        assert min(costs.decode(1), costs.decode(64, 9000), costs.prompt(1), costs.prompt(512, 1e6), costs.per_token()) >= 0


def test_answers_are_learnt_by_their_number_and_their_context():
    costs = StepCosts()
    for n, context, ms in [(1, 100, 9.6), (8, 100, 45.3), (8, 900, 115.7), (32, 100, 167.7), (32, 400, 273.3)] * 4:
        costs.observe(n, 0, ms / 1000, n * context)
    assert costs.decode(16, 16 * 200) == pytest.approx(0.1037, rel=0.05)
    assert costs.decode(0, 0) == 0.0


def test_answers_whose_context_is_not_told_have_one_as_lately():
    costs = StepCosts()
    for n, context, ms in [(1, 100, 9.6), (8, 100, 45.3), (8, 900, 115.7)] + [(8, 900, 115.7)] * 30:
        costs.observe(n, 0, ms / 1000, n * context)
    assert costs.decode(8) == pytest.approx(costs.decode(8, 8 * 900), rel=0.02)


def test_a_machine_that_gets_slower_is_noticed():
    costs = StepCosts()
    for _ in range(20):
        costs.observe(0, 10, 0.1)
    for _ in range(100):
        costs.observe(0, 10, 0.4)
    assert costs.prompt(10) == pytest.approx(0.4, rel=0.15)


def test_a_step_that_something_else_delayed_counts_little():
    costs = StepCosts()
    for i in range(40):
        costs.observe(4, 0, 0.02 if i % 5 else 2.0)
    assert costs.decode(4) < 0.03


def test_a_chunk_beside_answers_costs_what_they_do_not():
    costs = StepCosts()
    costs.observe(8, 0, 0.04)
    decode = costs.decode(8)
    costs.observe(8, 100, decode + 0.1)
    assert costs.prompt(100) == pytest.approx(0.1, rel=0.02)
    costs = StepCosts()
    costs.observe(8, 0, 0.04)
    costs.observe(8, 100, 0.01)
    assert costs.prompt(100) == pytest.approx(0.001, rel=0.02), "never nothing"


def test_moves_are_learnt_from_moves():
    costs = StepCosts()
    assert costs.move_seconds == 0.0
    costs.observe_move(1000, 0.01)
    assert costs.move_seconds == pytest.approx(1e-5)
    costs.observe_move(1000, 0.02)
    assert costs.move_seconds == pytest.approx(1.2e-5), "one that was slow counts, but not alone"
    for _ in range(50):
        costs.observe_move(500, 0.01)
    assert costs.move_seconds == pytest.approx(2e-5, rel=0.01)
    costs.observe_move(0, 0.0)


@pytest.mark.parametrize(
    ("restored", "computed", "expected"),
    [
        pytest.param(1000, 1000, True, id="all of it"),
        pytest.param(1000, 110, True, id="enough of it is new"),
        pytest.param(1000, 90, False, id="most is there already"),
        pytest.param(0, 0, False, id="nothing"),
    ],
)
def test_a_restore_pays_if_it_takes_less_time(restored, computed, expected):
    costs = StepCosts()
    costs.observe(0, 100, 0.1)
    costs.observe_move(100, 0.01)
    assert costs.pays(restored, computed) is expected


def test_nothing_pays_before_anything_is_known():
    assert not StepCosts().pays(100, 100)


def test_the_draft_model_guesses_token_by_token() -> None:
    costs = DraftCosts()
    assert costs.guess(1, 5) == costs.read(10) == 0.0
    costs.observe_guess(1, 4, 0.4)
    costs.observe_guess(8, 2, 0.8)
    assert costs.guess(1, 3) == pytest.approx(0.3)
    assert costs.guess(8, 3) == pytest.approx(1.2)
    assert costs.guess(0, 3) == 0.0
    costs.observe_read(64, 0.64)
    costs.observe_read(8, 0.8)
    assert costs.read(100) == pytest.approx(1.0), "pieces are read in the cheapest size"
