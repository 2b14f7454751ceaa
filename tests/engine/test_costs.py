from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.costs import StepCosts


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
