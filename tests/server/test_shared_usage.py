"""Usage that several servers add up in a real Redis, which comes and goes."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as client
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from locallab import cli, redis_link
from locallab.engine.request import Usage
from locallab.keys import Key
from locallab.server import usage
from locallab.server.shared_usage import Batch, Outbox, RedisUsage, SharedUsage
from locallab.server.usage import Slot, Spent, UsageFile, UsageLog, first_day
from tests.support.http_server import start_in
from tests.support.redis_server import redis
from tests.support.wait import PATIENCE, free_port, until

ROOT = Path(__file__).parents[2]
ANN = Key("ann", "pro", "a" * 64, 1)
TODAY = first_day(1)
MINE = Slot(TODAY, ANN.id, "m")
ONCE = Usage(10, 5, 3)


def times(count: int) -> dict[Slot, Spent]:
    return {MINE: Spent("ann", count, 10 * count, 3 * count, 5 * count)}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with redis(free_port()) as url:
        yield url


@pytest.fixture
def url(address: str) -> str:
    with client.Redis.from_url(address) as admin:
        admin.flushdb()
    return address


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "PAUSE", 0.05)
    monkeypatch.setattr(usage, "INTERVAL", 0.01)


@contextlib.contextmanager
def counting(url: str, folder: Path) -> Iterator[UsageLog]:
    log = UsageLog(SharedUsage(RedisUsage(redis_link.connect(url)), Outbox(folder / "unsent.db")), 400)
    try:
        yield log
    finally:
        log.close()


def counted(url: str) -> dict[Slot, Spent]:
    with redis_link.connect(url) as connection:
        return RedisUsage(connection).read("")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition(" (")[0] for record in caplog.records if record.levelno >= logging.WARNING]


BACK = "Redis is back: counts of usage are shared again"

slots = st.builds(
    Slot,
    st.sampled_from(["2026-01-01", "2026-01-02", "2026-02-01"]),
    st.sampled_from(["", "k", "l"]),
    st.sampled_from(["m", "ü:\n"]),
)
spent = st.builds(Spent, st.sampled_from(["", "ann", "bob"]), *[st.integers(0, 1 << 40)] * 4)
days = st.sampled_from(["", "2026-01-02", "2026-03-01"])


@hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.dictionaries(slots, spent, max_size=4), days, days, st.sampled_from([None, "", "k"])), max_size=6))
def test_redis_counts_as_the_file_does(
    url: str, tmp_path: Path, steps: list[tuple[dict[Slot, Spent], str, str, str | None]]
) -> None:
    path = tmp_path / "usage.db"
    path.unlink(missing_ok=True)
    with redis_link.connect(url) as connection:
        connection.flushdb()
        file, shared = UsageFile(path), RedisUsage(connection)
        for counts, oldest, since, key in steps:
            file.add(counts, oldest)
            batch = Batch.of(counts)
            shared.add(batch, oldest)
            shared.add(batch, "")  # is there already
            assert list(shared.read(since, key).items()) == list(file.read(since, key).items())
        shared.add(Batch.of({}), "9999-01-01")
        assert [name for name in connection.scan_iter() if b":batch:" not in name] == []


def test_servers_add_up_what_each_has_counted(url: str, tmp_path: Path) -> None:
    with counting(url, tmp_path / "a") as first, counting(url, tmp_path / "b") as second:
        for log in (first, second, first):
            log.add(ANN, "m", ONCE)
        until(lambda: counted(url) == times(3))
        assert first.report(1) == second.report(1) == times(3) and first.report(1, "other") == {}
    assert not list(tmp_path.rglob("*.db"))


def test_while_redis_is_gone_counts_wait_in_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with counting(f"redis://127.0.0.1:{port}/0", tmp_path) as log:
        for number in range(1, 4):
            log.add(ANN, "m", ONCE)
            assert log.report(1) == times(number)
        until(lambda: Outbox(tmp_path / "unsent.db").read() == times(3))
        assert lines(caplog) == ["Redis fails"] and "unsent.db" in caplog.text
        with redis(port) as url:
            until(lambda: counted(url) == times(3))  # without a further request
            until(lambda: Outbox(tmp_path / "unsent.db").read() == {})
            log.add(ANN, "m", ONCE)
            until(lambda: counted(url) == times(4))
            assert log.report(1) == times(4)
    assert lines(caplog) == ["Redis fails", BACK]


def test_what_a_killed_server_left_is_carried_over_by_the_next(url: str, tmp_path: Path) -> None:
    code = """if True:
        import sys, time
        from pathlib import Path
        from locallab import redis_link
        from locallab.engine.request import Usage
        from locallab.server.shared_usage import Outbox, RedisUsage, SharedUsage
        from locallab.server.usage import UsageLog
        from tests.server.test_shared_usage import ANN, ONCE
        log = UsageLog(SharedUsage(RedisUsage(redis_link.connect(sys.argv[1])), Outbox(Path(sys.argv[2]))), 400)
        for number in range(100):
            log.add(ANN, "m", ONCE)
        time.sleep(1.5)
        print("killed now", flush=True)
        time.sleep(60)
    """
    gone = f"redis://127.0.0.1:{free_port()}/0"
    arguments = [sys.executable, "-c", code, gone, str(tmp_path / "unsent.db")]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    with counting(url, tmp_path):
        until(lambda: counted(url) == times(100))


def test_counts_whose_arrival_was_not_heard_of_are_not_counted_twice(url: str, tmp_path: Path) -> None:
    class Deaf(RedisUsage):
        deaf = True

        def add(self, batch: Batch, oldest: str) -> bool:
            added = super().add(batch, oldest)
            if self.deaf:
                raise client.ConnectionError("the answer is lost")
            return added

    shared = Deaf(redis_link.connect(url))
    log = UsageLog(SharedUsage(shared, Outbox(tmp_path / "unsent.db")), 400)
    log.add(ANN, "m", ONCE)
    until(lambda: Outbox(tmp_path / "unsent.db").read() == times(1))
    log.add(ANN, "m", ONCE)
    shared.deaf = False
    until(lambda: Outbox(tmp_path / "unsent.db").read() == {})
    log.close()
    assert counted(url) == times(2)


def test_several_servers_of_one_machine_share_the_file(tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(counting(f"redis://127.0.0.1:{port}/0", tmp_path)) for _ in range(3)]

        def count(log: UsageLog) -> None:
            for _ in range(20):
                log.add(ANN, "m", ONCE)
                log.report(1)

        threads = [threading.Thread(target=count, args=(log,)) for log in logs]
        for thread in threads:
            thread.start()
        with redis(port) as url:
            for thread in threads:
                thread.join()
            until(lambda: counted(url) == times(60) and Outbox(tmp_path / "unsent.db").read() == {})


def test_a_report_does_not_wait_for_a_redis_that_does_not_answer(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        counting(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", tmp_path) as log,
    ):
        log.add(ANN, "m", ONCE)
        begun = time.monotonic()
        assert log.report(1) == times(1)
        assert time.monotonic() - begun < PATIENCE


@pytest.mark.parametrize("content", [b"no database" * 100, b""], ids=["damaged", "empty"])
def test_a_damaged_file_of_unsent_counts_stops_nothing(url: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "unsent.db").write_bytes(content)
    with counting(url, tmp_path) as log:
        log.add(ANN, "m", ONCE)
        until(lambda: counted(url) == times(1))
        assert log.report(1) == times(1)


def test_without_redis_and_without_a_disk_counts_wait_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Outbox):
        def add(self, counts: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        put = add

    shared = RedisUsage(redis_link.connect(f"redis://127.0.0.1:{free_port()}/0"))
    log = UsageLog(SharedUsage(shared, Full(tmp_path / "unsent.db")), 400)
    for number in range(1, 4):
        log.add(ANN, "m", ONCE)
        assert log.report(1) == times(number)
    log.close()
    assert lines(caplog)[0] == "Redis fails" and sum("kept in memory" in line for line in lines(caplog)) == 1


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["keys", "usage", *arguments])


def test_every_server_and_the_command_report_the_shared_counts(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    request = {"model": "any", "prompt": "hi"}
    with start_in(tmp_path / "a")(redis_url=url) as first, start_in(tmp_path / "b")(redis_url=url) as second:
        for served in (first, second):
            assert served.http.post("/v1/completions", json=request).status_code == 200
        until(lambda: sum(spent.requests for spent in counted(url).values()) == 2)
        for served in (first, second):
            assert [row["requests"] for row in served.http.get("/api/v1/usage").json()["usage"]] == [2]
    assert [row["requests"] for row in json.loads(run("--json", "--redis-url", url).stdout)] == [2]
    monkeypatch.setenv("LOCALLAB_REDIS_URL", url)
    assert [row["requests"] for row in json.loads(run("--json").stdout)] == [2]
    assert run("--json", "--redis-url", "").stdout == "[]\n"


@pytest.mark.parametrize(
    ("url", "status", "reason"),
    [
        ("localhost", 2, "redis_url: must begin with"),
        ("redis://:pass@127.0.0.1:1/0", 1, "redis_url: Redis at 127.0.0.1:1 fails: "),
    ],
)
def test_a_redis_that_the_command_cannot_ask_is_one_line(url: str, status: int, reason: str) -> None:
    done = run("--redis-url", url)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert done.stderr.startswith(f"locallab: {reason}") and "pass" not in done.stderr
