"""Usage by day, key and model: what the file holds, and what survives a crash, a full disk and a damaged file."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from locallab.engine.request import Usage
from locallab.keys import Key
from locallab.server import usage
from locallab.server.usage import OTHER, Slot, Spent, UsageFile, UsageLog, first_day
from tests.support.wait import until

ROOT = Path(__file__).parents[2]
ANN = Key("ann", "pro", "a" * 64, 1)
BOB = Key("bob", "free", "b" * 64, 1, "use")
TODAY = first_day(1)


@pytest.fixture
def file(tmp_path: Path) -> UsageFile:
    return UsageFile(tmp_path / "deep" / "usage.db")


@pytest.fixture
def log(file: UsageFile) -> Iterator[UsageLog]:
    log = UsageLog(file, 400)
    yield log
    log.close()


def test_requests_add_up_by_day_key_and_model(file: UsageFile, log: UsageLog) -> None:
    for key, model in ((ANN, "m"), (ANN, "m"), (ANN, "n"), (BOB, "m"), (None, "m")):
        log.add(key, model, Usage(10, 5, 3))
    once = (1, 10, 3, 5)
    expected = {
        Slot(TODAY, "", "m"): Spent("", *once),
        Slot(TODAY, ANN.id, "m"): Spent("ann", 2, 20, 6, 10),
        Slot(TODAY, ANN.id, "n"): Spent("ann", *once),
        Slot(TODAY, BOB.id, "m"): Spent("bob", *once),
    }
    assert log.report(1) == expected == file.read(TODAY)
    assert log.report(1, BOB.id) == {Slot(TODAY, BOB.id, "m"): Spent("bob", *once)}
    log.close()
    again = UsageLog(file, 400)
    again.add(BOB, "m", Usage(1, 1, 0))
    assert again.report(1, BOB.id) == {Slot(TODAY, BOB.id, "m"): Spent("bob", 2, 11, 3, 6)}
    again.close()


def test_what_nothing_was_computed_for_is_no_request(log: UsageLog) -> None:
    log.add(ANN, "m", Usage(0, 0, 0))
    assert log.report(1) == log.totals() == {}


def test_it_is_written_soon_without_being_asked(file: UsageFile, log: UsageLog) -> None:
    log.add(ANN, "m", Usage(1, 1, 0))
    until(lambda: file.read(TODAY) != {})


def test_closing_writes_the_rest(file: UsageFile, log: UsageLog) -> None:
    log.add(ANN, "m", Usage(1, 1, 0))
    log.close()
    assert len(file.read(TODAY)) == 1


def test_only_the_owner_can_read_it(file: UsageFile) -> None:
    file.add({}, "")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600 and stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


def test_old_days_are_removed(file: UsageFile) -> None:
    spent = Spent("ann", 1, 1, 1, 1)
    file.add({Slot(first_day(days), "a", "m"): spent for days in (1, 7, 8, 30)}, first_day(7))
    file.add({Slot(TODAY, "a", "m"): spent}, first_day(7))
    assert list(file.read("")) == [Slot(first_day(7), "a", "m"), Slot(TODAY, "a", "m")]


def test_no_days_are_no_file(file: UsageFile) -> None:
    log = UsageLog(file, 0)
    log.add(ANN, "m", Usage(1, 1, 0))
    log.close()
    assert not file.path.exists() and log.totals() == {("ann", "m"): Spent("ann", 1, 1, 0, 1)}


DAMAGE = {
    "no database": lambda whole: b"x" * 5000,
    "garbage inside": lambda whole: whole[:4096] + b"\xff" * 4096 + whole[8192:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_moved_aside(file: UsageFile, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    file.add({Slot(TODAY, str(key), "m"): Spent("x" * 60, 1, 1, 1, 1) for key in range(500)}, "")
    damaged = damage(file.path.read_bytes())
    file.path.write_bytes(damaged)
    log = UsageLog(file, 400)
    for _ in range(3):
        log.add(ANN, "m", Usage(1, 1, 0))
        assert log.report(1)[Slot(TODAY, ANN.id, "m")].requests
    log.close()
    assert file.read("") == {Slot(TODAY, ANN.id, "m"): Spent("ann", 3, 3, 0, 3)}
    assert file.path.with_suffix(".damaged").read_bytes() == damaged
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "is damaged" in record.getMessage() and "usage.damaged" in record.getMessage()


def test_on_a_full_disk_counts_wait_in_memory(file: UsageFile, caplog: pytest.LogCaptureFixture) -> None:
    class Full(UsageFile):
        full = True

        def add(self, *arguments: Any) -> None:
            if self.full:
                raise sqlite3.OperationalError("database or disk is full")
            super().add(*arguments)

    full = Full(file.path)
    log = UsageLog(full, 400)
    for times in range(1, 4):
        log.add(ANN, "m", Usage(2, 1, 1))
        assert log.report(1) == {Slot(TODAY, ANN.id, "m"): Spent("ann", times, 2 * times, times, times)}
    full.full = False
    log.close()
    assert file.read("") == {Slot(TODAY, ANN.id, "m"): Spent("ann", 3, 6, 3, 3)}
    assert len([each for each in caplog.records if "kept in memory" in each.getMessage()]) == 1


def test_what_waits_in_memory_is_bounded(file: UsageFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MOST_UNWRITTEN", 5)
    file.path.mkdir(parents=True)  # cannot be written
    log = UsageLog(file, 400)
    for number in range(9):
        log.add(ANN, f"m{number % 7}", Usage(1, 1, 0))
    assert [slot.model for slot in log.report(1)] == [f"m{number}" for number in range(5)]
    assert log.report(1)[Slot(TODAY, ANN.id, "m1")].requests == 2
    log.close()


@pytest.mark.parametrize("kind", ["a folder", "a FIFO"])
def test_what_is_no_file_stops_nothing(file: UsageFile, kind: str) -> None:
    file.path.parent.mkdir()
    (os.mkdir if kind == "a folder" else os.mkfifo)(file.path)
    log = UsageLog(file, 400)
    log.add(ANN, "m", Usage(1, 1, 0))
    assert len(log.report(1)) == 1
    log.close()


def test_labels_are_bounded(file: UsageFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MOST_LABELS", 3)
    log = UsageLog(file, 0)
    for number in (0, 1, 2, 3, 4, 0):
        log.add(ANN, f"m{number}", Usage(1, 1, 0))
    totals = log.totals()
    assert {label: spent.requests for label, spent in totals.items()} == {
        ("ann", "m0"): 2, ("ann", "m1"): 1, ("ann", "m2"): 1, OTHER: 2,
    }  # fmt: skip


def test_counting_never_waits_for_the_disk(file: UsageFile) -> None:
    released, writing = threading.Event(), threading.Event()

    class Slow(UsageFile):
        def add(self, *arguments: Any) -> None:
            writing.set()
            assert released.wait(30)
            super().add(*arguments)

    log = UsageLog(Slow(file.path), 400)
    log.add(ANN, "m", Usage(1, 1, 0))
    assert writing.wait(30)
    log.add(ANN, "m", Usage(1, 1, 0))  # returns while the disk is waited for
    released.set()
    log.close()
    assert file.read("")[Slot(TODAY, ANN.id, "m")].requests == 2


def test_a_killed_server_loses_nothing_older_than_a_second(file: UsageFile) -> None:
    code = """if True:
        import sys, time
        from pathlib import Path
        from locallab.engine.request import Usage
        from locallab.server.usage import UsageFile, UsageLog
        log = UsageLog(UsageFile(Path(sys.argv[1])), 400)
        for number in range(100):
            log.add(None, "m", Usage(1, 1, 0))
        time.sleep(1)
        print("killed now", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", code, str(file.path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert file.read("") == {Slot(TODAY, "", "m"): Spent("", 100, 100, 0, 100)}


def test_several_servers_count_in_one_file(file: UsageFile) -> None:
    def count(log: UsageLog) -> None:
        for _ in range(20):
            log.add(ANN, "m", Usage(1, 1, 0))
            log.report(1)
        log.close()

    logs = [UsageLog(UsageFile(file.path), 400) for _ in range(3)]
    threads = [threading.Thread(target=count, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read("")[Slot(TODAY, ANN.id, "m")].requests == 60
