from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab import units
from locallab.cli import download_progress
from locallab.models import FileSource, ModelSpec

SPEC = ModelSpec(id="tiny", source=FileSource(Path("x.gguf")), size=98_000_000, context=8, description="tiny")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace stderr; not a fixture, as pytest replaces sys.stderr between a fixture and its test."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_lines_off_a_terminal_are_few_and_tell_speed_and_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    clock = iter([100.0, 104.0, 110.0, 111.0, 112.0])
    monkeypatch.setattr(download_progress.time, "monotonic", lambda: next(clock))
    with download_progress.progress(SPEC) as report:
        for done in (8_000_000, 40_000_000, 78_000_000, 98_000_000, 98_000_000):
            report(done, SPEC.size)
    assert caplog.messages == [
        "fetching tiny: 8 MB of 98 MB",
        "fetching tiny: 78 MB of 98 MB, 7 MB/s, 3 s left",
        "fetching tiny: 98 MB of 98 MB, 8.18 MB/s",
    ]


def test_an_unknown_total_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with download_progress.progress(SPEC) as report:
        report(5_000_000, None)
    assert caplog.messages == ["fetching tiny: 5 MB"]


@pytest.mark.parametrize(
    ("seen", "speed", "left"),
    [
        ([], None, None),
        ([(0, 50)], None, None),
        ([(0, 50), (0, 60)], None, None),
        ([(0, 50), (5, 50)], None, None),
        ([(0, 50), (5, 60)], 2.0, 20.0),
        ([(0, 0), (5, 50), (6, 10), (8, 20)], 5.0, 16.0),  # bytes were thrown away
        ([(0, 0), (30, 60), (60, 63), (90, 66)], 0.1, 340.0),  # only the last minute counts
        ([(0, 0), (1000, 50)], 0.05, 1000.0),
    ],
)
def test_pace(seen: list[tuple[float, int]], speed: float | None, left: float | None) -> None:
    pace = download_progress.Pace(60.0)
    for now, done in seen:
        pace.add(now, done)
    assert pace.speed == (None if speed is None else pytest.approx(speed))
    assert pace.left(100) == (None if left is None else pytest.approx(left))
    assert pace.left(None) is None


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**12)), max_size=40))
def test_pace_keeps_little_and_is_never_negative(steps: list[tuple[float, int]]) -> None:
    pace, now = download_progress.Pace(60.0), 0.0
    for wait, done in steps:
        now += wait
        pace.add(now, done)
        assert pace.speed is None or pace.speed > 0
        assert pace.speed is None or (pace.left(done) or 0) >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1, "1 s"), (45, "45 s"), (100, "2 min"), (5000, "83 min"), (7500, "2 h 5 min"), (36000, "10 h 0 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with download_progress.progress(SPEC) as report:
        report(SPEC.size or 0, SPEC.size)
    assert (terminal.getvalue(), caplog.messages) == ("", ["fetching tiny: 98 MB of 98 MB"])


def test_the_bar_does_not_take_for_speed_what_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch)
    with download_progress.progress(SPEC) as report:
        report(90_000_000, SPEC.size)
        (task,) = report._bars.tasks  # type: ignore[attr-defined]
        assert task.speed is None


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with download_progress.progress(SPEC) as report:
        report(0, SPEC.size)
        report(SPEC.size, SPEC.size)
    assert "tiny" in terminal.getvalue()
    assert "98.0/98.0 MB" in terminal.getvalue()


def test_nothing_to_fetch_shows_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    terminal = on_a_terminal(monkeypatch)
    with download_progress.progress(SPEC):
        pass
    assert terminal.getvalue() == ""
    assert caplog.messages == []
