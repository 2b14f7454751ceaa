from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from locallab import units

CASES: list[tuple[Callable[..., str], Any, str]] = [
    (units.duration, 0.2, "1 s"),
    (units.duration, 45, "45 s"),
    (units.duration, 180, "3 min"),
    (units.duration, 7500, "2 h 5 min"),
    (units.count, 7_600_000_000, "7.6 billion"),
    (units.count, 135_000_000, "135 million"),
    (units.count, 999, "999"),
    (units.binary_bytes, 812 << 20, "812 MiB"),
    (units.binary_bytes, int(4.4 * 2**30), "4.4 GiB"),
    (units.decimal_bytes, 4_700_000_000, "4.7 GB"),
    (units.decimal_bytes, 12_000, "12 kB"),
    (units.decimal_bytes, 12, "12 bytes"),
    (units.compact_bytes, None, "unknown"),
    (units.compact_bytes, 98_000_000, "98MB"),
    (units.compact_bytes, 98, "98B"),
    (units.compact_count, 8_030_000_000, "8.0B"),
    (units.compact_count, 135_000_000, "135M"),
    (units.compact_count, 12, "12"),
    (units.compact_count, 0, ""),
]


@pytest.mark.parametrize(("format_", "value", "text"), CASES)
def test_figures(format_: Callable[..., str], value: Any, text: str) -> None:
    assert format_(value) == text
