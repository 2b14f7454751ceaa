from __future__ import annotations

from typing import Any

import pytest

from locallab.load.client import Answer
from locallab.load.figures import figures, percentile
from locallab.load.generator import Outcome


def answer(arrivals: list[float], *, started: float = 0.0, max_tokens: int = 2, **values: Any) -> Answer:
    return Answer(max_tokens, started, arrivals={0: arrivals} if arrivals else {}, status=200, **values)


class TestPercentile:
    @pytest.mark.parametrize(
        ("values", "percent", "expected"),
        [
            ([], 50, None),
            ([7.0], 99, 7.0),
            ([3.0, 1.0, 2.0], 50, 2.0),
            ([1.0, 2.0], 50, 1.5),
            ([0.0, 10.0], 95, 9.5),
            ([1.0, 4.0], 100, 4.0),
        ],
        ids=["none", "one", "middle", "between", "near the end", "largest"],
    )
    def test_interpolates(self, values: list[float], percent: float, expected: float | None) -> None:
        assert percentile(values, percent) == expected


class TestFigures:
    def test_counts_whole_answers_alone(self) -> None:
        broken = answer([0.1], cut_off=True, error="cut off: no [DONE]")
        short = answer([0.2], usage_tokens=1, prompt_tokens=9)
        outcome = Outcome([broken, short, answer([0.4, 0.5], usage_tokens=2, prompt_tokens=11)], [], 2.0, 0.1)
        measured = figures(outcome)
        assert (measured.requests, measured.errors, measured.cut_off, measured.wrong_lengths) == (3, 1, 1, 1)
        assert (measured.tokens, measured.tokens_per_s) == (3, 1.5)
        assert measured.ttft_p50 == pytest.approx(300)
        assert measured.messages == {"cut off: no [DONE]": 1}

    def test_takes_ttft_from_arrivals_and_gaps_from_decoders(self) -> None:
        outcome = Outcome([answer([1.0, 1.2])], [answer([5.0, 9.0], started=3.0)], 10.0, 0.1)
        measured = figures(outcome)
        assert measured.ttft_p50 == pytest.approx(2000)
        assert measured.itl_p99 == measured.itl_max == pytest.approx(200)
        assert measured.tokens == 4

    def test_takes_the_times_of_each_choice(self) -> None:
        both = Answer(4, 0.0, 2, arrivals={0: [1.0, 1.5], 1: [3.0, 3.5]}, status=200)
        measured = figures(Outcome([both], [], 10.0, 0.1))
        assert (measured.ttft_p50, measured.itl_max, measured.tokens) == (2000, 500, 4)

    def test_knows_no_times_when_nothing_was_whole(self) -> None:
        outcome = Outcome([answer([], error="HTTP 500: no")], [], 1.0, 0.0)
        measured = figures(outcome)
        assert (measured.tokens_per_s, measured.ttft_p50, measured.itl_p99) == (0.0, None, None)
