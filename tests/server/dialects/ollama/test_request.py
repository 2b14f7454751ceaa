from __future__ import annotations

import pytest

from locallab.errors import InvalidField
from locallab.server.dialects.ollama.request import seconds

DURATIONS = {
    "5m": 300,
    "1h30m": 5400,
    "300ms": 0.3,
    "1.5h": 5400,
    "0": 0,
    "0s": 0,
    "-1": -1,
    "-1m": -60,
    "90": 90,
    5: 5,
    0.5: 0.5,
}


@pytest.mark.parametrize(("raw", "expected"), DURATIONS.items())
def test_duration(raw: float | str, expected: float) -> None:
    assert seconds("keep_alive", raw) == pytest.approx(expected)


@pytest.mark.parametrize("raw", ["", "soon", "5 minutes", "5x", "m", "--1"])
def test_no_duration(raw: str) -> None:
    with pytest.raises(InvalidField, match="keep_alive: expected seconds or a duration"):
        seconds("keep_alive", raw)
