from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.costs import DraftCosts, StepCosts


def test_nothing_is_promised_before_anything_is_known():
    costs = StepCosts()
    assert costs.chunk(4, 1.0) == 0
    assert costs.decode(4) == 0.0
    assert costs.per_token() == 0.0


@given(st.floats(1e-4, 0.1), st.floats(1e-5, 0.01), st.integers(1, 64))
def test_a_chunk_fills_what_the_answers_leave(decode, per_token, n_decode):
    costs = StepCosts()
    costs.observe(n_decode, 0, decode)
    costs.observe(0, 100, 100 * per_token)
    assert costs.chunk(n_decode, decode + 50 * per_token) == pytest.approx(50, abs=1)
    assert costs.chunk(n_decode, decode / 2) == 0


def test_a_batch_that_nobody_waited_for_counts_with_the_next() -> None:
    costs = StepCosts()
    costs.observe(8, 0, 0.01)
    costs.defer(0, 300, 0.001)
    costs.defer(0, 200, 0.001)
    assert costs.per_token() == 0
    costs.observe(8, 0, 0.058)
    assert costs.per_token() == pytest.approx(0.05 / 500)
    costs.observe(8, 0, 0.01)
    assert costs.decode(8) == pytest.approx(0.01)
    costs.defer(0, 500, 0.001)
    before = costs.verify(1, 3)
    costs.observe_drafts(8, 1, 3, 9.0)  # waited for the prompt too, so it tells nothing of drafts
    assert costs.verify(1, 3) == before
    costs.observe(8, 0, 0.01)
    assert costs.per_token() == pytest.approx(0.05 / 500)


def test_an_unknown_number_of_answers_costs_what_the_nearest_known_does():
    costs = StepCosts()
    costs.observe(1, 0, 0.01)
    costs.observe(32, 0, 0.16)
    assert costs.decode(2) == 0.01
    assert costs.decode(40) == 0.16


def test_a_machine_that_gets_slower_is_noticed():
    costs = StepCosts()
    for _ in range(3):
        costs.observe(0, 10, 0.1)
    for _ in range(30):
        costs.observe(0, 10, 0.4)
    assert costs.chunk(0, 1.0) == pytest.approx(25, abs=1)


def test_chunks_are_cut_for_the_cheapest_way():
    costs = StepCosts()
    costs.observe(0, 10, 0.1)
    costs.observe(0, 100, 0.5)
    assert costs.per_token() == 0.005
    assert costs.chunk(0, 1.0) == 200


def test_one_lucky_figure_does_not_stand_for_ever():
    costs = StepCosts()
    costs.observe(0, 500, 0.5)
    for _ in range(256):
        costs.observe(0, 64, 0.64)
    assert costs.per_token() == 0.001, "it may have been no luck"
    costs.observe(0, 64, 0.64)
    assert costs.per_token() == pytest.approx(0.01)


def test_a_figure_that_is_seen_again_stays():
    costs = StepCosts()
    for i in range(2000):
        costs.observe(0, *((500, 0.5) if i % 200 == 0 else (64, 0.64)))
    assert costs.per_token() == pytest.approx(0.001)


def test_steps_of_answers_are_not_forgotten():
    costs = StepCosts()
    costs.observe(1, 0, 0.01)
    for _ in range(2000):
        costs.observe(8, 0, 0.04)
    assert costs.decode(1) == 0.01


def test_a_chunk_beside_answers_costs_what_they_do_not():
    costs = StepCosts()
    costs.observe(8, 0, 0.04)
    costs.observe(8, 100, 0.14)
    assert costs.per_token() == pytest.approx(0.001)
    costs = StepCosts()
    costs.observe(8, 0, 0.04)
    costs.observe(8, 100, 0.01)
    assert costs.per_token() == pytest.approx(0.00001), "never nothing"


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
        pytest.param(1000, 101, True, id="enough of it is new"),
        pytest.param(1000, 99, False, id="most is there already"),
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
