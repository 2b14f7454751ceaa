from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locallab.cli.terminal import input_history
from locallab.cli.terminal.input_history import InputHistory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "chat-history"


def test_lines_are_there_in_the_next_run_and_private(path: Path) -> None:
    first = InputHistory(path)
    assert first.lines == []
    first.add("one")
    first.add("pasted\nlines \u2028 ü")
    assert InputHistory(path).lines == ["one", "pasted\nlines \u2028 ü"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_others_may_read_becomes_private(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('"one"\n')
    path.chmod(0o644)
    assert InputHistory(path).lines == ["one"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_removed_file_is_made_anew_and_private(path: Path) -> None:
    history = InputHistory(path)
    path.unlink()
    history.add("one")
    assert InputHistory(path).lines == ["one"] and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_runs_share_the_file(path: Path) -> None:
    one, other = InputHistory(path), InputHistory(path)
    one.add("a")
    other.add("b")
    one.add("c")
    assert InputHistory(path).lines == ["a", "b", "c"]


def test_the_newest_lines_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_history, "LINES", 3)
    first = InputHistory(path)
    for each in "abcde":
        first.add(each)
    assert InputHistory(path).lines == ["c", "d", "e"]
    assert path.read_text() == '"c"\n"d"\n"e"\n'


def test_neither_the_key_nor_what_is_very_long_is_kept(path: Path) -> None:
    history = InputHistory(path, "ll-secret")
    history.add("my key is ll-secret, is it good?")
    history.add("x" * (input_history.LONGEST_LINE + 1))
    history.add("x" * input_history.LONGEST_LINE)
    assert InputHistory(path).lines == ["x" * input_history.LONGEST_LINE]


def test_lines_of_another_kind_are_passed_over(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'plain\n"one"\n5\n\xff\n"a\\u0000b"\n""\n' + b"[" * 5000 + b'\n"two"')
    assert InputHistory(path).lines == ["one", "two"]


def test_a_file_that_cannot_be_written_keeps_nothing(path: Path) -> None:
    history = InputHistory(path)
    path.unlink()
    path.mkdir()
    history.add("one")
    with pytest.raises(OSError):
        InputHistory(path)


@given(st.lists(st.text(min_size=1, max_size=20)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_line(path: Path, lines: list[str]) -> None:
    path.unlink(missing_ok=True)
    history = InputHistory(path)
    for line in lines:
        history.add(line)
    kept = [line.encode(errors="replace").decode() for line in lines if "\0" not in line]
    assert InputHistory(path).lines == kept
