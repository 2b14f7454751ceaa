from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from locallab.cli import fetching
from locallab.models import FileSource, ModelSpec

SPEC = ModelSpec(id="tiny", source=FileSource(Path("x.gguf")), size=98_000_000, context=8, description="tiny")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself: pytest sets sys.stderr anew between a fixture and its test."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_lines_off_a_terminal_are_few(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    clock = iter([100.0, 100.0, 104.0, 110.0, 110.0, 111.0, 111.0, 112.0])
    monkeypatch.setattr(fetching.time, "monotonic", lambda: next(clock))
    with fetching.progress(SPEC) as report:
        for done in (0, 40_000_000, 80_000_000, 98_000_000, 98_000_000):
            report(done, SPEC.size)
    assert caplog.messages == ["fetching tiny: 0 MB of 98", "fetching tiny: 80 MB of 98", "fetching tiny: 98 MB of 98"]


def test_an_unknown_total_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with fetching.progress(SPEC) as report:
        report(5_000_000, None)
    assert caplog.messages == ["fetching tiny: 5 MB"]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with fetching.progress(SPEC) as report:
        report(0, SPEC.size)
        report(SPEC.size, SPEC.size)
    assert "tiny" in terminal.getvalue()
    assert "98.0/98.0 MB" in terminal.getvalue()


def test_nothing_to_fetch_shows_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    terminal = on_a_terminal(monkeypatch)
    with fetching.progress(SPEC):
        pass
    assert terminal.getvalue() == ""
    assert caplog.messages == []
