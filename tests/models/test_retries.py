from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.models.sources import retries

NOW = datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(
    ("failures", "status", "asked", "expected"),
    [
        (1, None, None, 1.0),
        (3, None, None, 4.0),
        (5, 503, None, 16.0),
        (6, 503, None, None),
        (1, 404, None, None),
        (1, 403, 5.0, None),
        (1, 429, 300.0, 300.0),
        (1, 429, 301.0, None),
        (2, 429, 0.0, 0.0),
    ],
)
def test_delay(failures: int, status: int | None, asked: float | None, expected: float | None) -> None:
    assert retries.delay(failures, status, asked) == expected


@given(failures=st.integers(1, 50), status=st.none() | st.integers(100, 599), asked=st.none() | st.floats(0, 1e6))
def test_no_wait_is_longer_than_the_longest_and_none_goes_on_for_ever(
    failures: int, status: int | None, asked: float | None
) -> None:
    found = retries.delay(failures, status, asked)
    assert found is None or 0 <= found <= retries.LONGEST
    assert found is None or failures <= retries.TRIES


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": " 12 "}, 12.0),
        ({"retry-after": "Sat, 31 Jan 2026 12:01:30 GMT"}, 90.0),
        ({"retry-after": "Sat, 31 Jan 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sat, 31 Jan 2026 12:01:30"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": '"api";r=10;t=55'}, None),
        ({"retry-after": "3", "ratelimit": '"api";r=0;t=55'}, 3.0),
    ],
)
def test_asked(headers: dict[str, str], expected: float | None) -> None:
    assert retries.asked(headers, NOW) == expected


def test_a_wait_looks_up_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    looks: list[None] = []
    monkeypatch.setattr(retries, "pause", paused.append)
    retries.wait(1.2, lambda: looks.append(None))
    assert paused == [0.5, 0.5, pytest.approx(0.2)]
    assert len(looks) == 3
