"""The supervisor of a server that does what its clients say."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from locallab import supervisor
from tests.support.wait import PATIENCE, until

SCRIPT = Path(__file__).parent / "support/supervised_server.py"
MANY = 1000
KILLS = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]


class Run:
    """A supervisor and its server; `tell` and the like answer what the server says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout
        self.port = int(process.stdout.readline() or 0)

    def say(self, *words: str) -> Any:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as sock, sock.makefile("rw") as file:
            print(*words, file=file, flush=True)
            return json.loads(file.readline())

    def tell(self) -> dict[str, Any]:
        return self.say("tell")  # type: ignore[no-any-return]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Kill the server; return when another one has taken its place."""
        os.kill(self.tell()["pid"], number)
        self.tell()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal to the supervisor, wait for it; return its exit status and what it has logged."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err


@contextlib.contextmanager
def running(*arguments: Any, environ: Mapping[str, str] = {}) -> Iterator[Run]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments or (MANY, "text"))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environ}) as process:
        try:
            yield Run(process)
        finally:
            process.kill()


def gone(pid: int) -> bool:
    """Return whether the process has ended, though nobody may have waited for it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_100_kills_leave_nothing_behind() -> None:
    with running() as run:
        own = psutil.Process(run.process.pid)
        run.kill()
        before, pids = own.num_fds(), {run.tell()["pid"]}
        for number in itertools.islice(itertools.cycle(KILLS), 100):
            run.kill(number)
            pids.add(run.tell()["pid"])
        assert len(pids) == 101
        assert (own.num_fds(), len(own.children())) == (before, 1)
        assert own.memory_info().rss < 20 << 20
        assert run.tell()["restarts"] == 101
        status, err = run.end()
    assert (status, err.count("SIGSEGV ended the server")) == (7, 33)
    assert all(map(gone, pids))


def test_the_log_says_what_ended_the_server() -> None:
    with running() as run:
        run.say("loaded", "tiny:1b", "other:2b")
        run.say("begin", "first", "second")
        run.kill(signal.SIGSEGV)
        assert run.tell()["cause"] == "SIGSEGV"
        _, err = run.end()
    [line] = err.splitlines()
    assert re.match(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} error locallab\.supervisor: SIGSEGV ended the server, which is", line
    )
    assert line.endswith("; model: tiny:1b, other:2b; requests under way: second, first")


def test_the_log_is_json_if_the_servers_is() -> None:
    with running(MANY, "json") as run:
        run.say("begin", *(f"r{n}" for n in range(10)))
        run.kill()
        _, err = run.end()
    entry = json.loads(err)
    assert (entry["level"], entry["logger"]) == ("error", "locallab.supervisor")
    assert re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{6}Z", entry["time"])
    assert entry["message"].endswith("requests under way: r9, r8, r7, r6, r5, r4, r3, r2 and 2 more")


def test_deaths_in_a_row_end_the_supervisor() -> None:
    with running(5, "text") as run:
        for number in (*KILLS, signal.SIGKILL):
            run.kill(number)
        os.kill(run.tell()["pid"], signal.SIGBUS)
        status, err = run.ended()
    assert status == 1
    reasons = "SIGKILL; SIGSEGV; SIGABRT; SIGKILL; SIGBUS"
    assert err.splitlines()[-1] == f"locallab: the server died 5 times within a minute: {reasons}"
    with pytest.raises(ConnectionRefusedError):
        run.tell()


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_the_exit_status_of_a_server_that_does_not_start_passes_through(status: int) -> None:
    for moment in ("EARLY", "LATE"):
        with running(environ={moment: str(status)}) as run:
            assert run.ended() == (status, "")


def test_a_server_that_crashes_before_it_listens_is_not_started_again() -> None:
    with running(environ={"EARLY": "SIGSEGV"}) as run:
        assert run.ended() == (128 + signal.SIGSEGV, "locallab: SIGSEGV ended the server before it could listen\n")


def test_a_failure_of_a_server_that_was_ready_is_a_death() -> None:
    with running() as run:
        os.kill(run.tell()["pid"], 0)
        with pytest.raises(ValueError):
            run.say("end", "3")
        assert run.tell()["cause"] == "exit status 3"


def test_a_server_that_ends_by_itself_ends_the_supervisor() -> None:
    with running() as run:
        with pytest.raises(ValueError):
            run.say("end", "0")
        assert run.ended() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_a_second_one_ends_both_at_once(number: int) -> None:
    with running() as run:
        pid = run.tell()["pid"]
        assert run.end(number) == (7, "")
        assert gone(pid)
    with running(environ={"STUBBORN": "1"}) as run:
        pid = run.tell()["pid"]
        run.process.send_signal(signal.SIGTERM)
        own = psutil.Process(run.process.pid)
        until(lambda: not own.net_connections("tcp"))  # the supervisor has stopped listening
        assert run.end(number) == (128 + number, "")
        assert gone(pid)


def test_no_server_outlives_a_killed_supervisor() -> None:
    with running() as run:
        pid = run.tell()["pid"]
        run.process.kill()
        run.process.wait()
        until(lambda: gone(pid))


def test_what_a_dead_server_has_started_is_ended() -> None:
    with running() as run:
        left, orphan = run.say("spawn"), run.say("orphan")
        assert not gone(left)
        until(lambda: not psutil.pid_exists(orphan))  # it has ended, and was waited for
        run.kill()
        assert gone(left)


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        with running(environ={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as run:
            assert manager.recv(100) == b"READY=1"
            run.kill()
            assert manager.recv(100) == b"READY=1\nSTATUS=restarts: 1"
            run.end()
            assert manager.recv(100) == b"STOPPING=1"


def test_a_server_without_a_supervisor_tells_the_service_manager_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0locallab-{os.getpid()}")  # no file: an abstract address
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@locallab-{os.getpid()}")
        child = supervisor.Child()
        child.bound(manager, 5, "text")  # there is nobody to pass it to
        child.ready()
        assert manager.recv(100) == b"READY=1" and not child.supervised


def test_a_model_whose_load_crashes_is_set_aside() -> None:
    with running() as run:
        run.say("loading", "bad:1b")
        run.kill(signal.SIGABRT)
        assert run.tell()["cause"] == "SIGABRT while loading bad:1b"
        assert run.tell()["aside"] == {"bad:1b": "its load ended the server: SIGABRT"}
        run.kill()
        assert list(run.tell()["aside"]) == ["bad:1b"]
        run.say("loaded", "bad:1b")
        run.kill()
        assert run.tell()["aside"] == {}


@pytest.mark.parametrize("number", KILLS)
def test_a_model_that_could_be_loaded_before_is_tried_again(number: int) -> None:
    with running() as run:
        for _ in range(3):
            run.say("loaded", "good:1b")
            run.kill()
            run.say("loading", "good:1b")
            run.kill(number)
            run.say("loading", "good:1b")
            run.kill(number)
            assert run.tell()["aside"] == {}
        run.say("loading", "good:1b")
        run.kill(number)
        assert list(run.tell()["aside"]) == ["good:1b"]


def test_models_get_less_memory_after_each_end_for_want_of_it(tmp_path: Path) -> None:
    kills = tmp_path / "oom_kills"
    kills.write_text("3")
    with running(MANY, "text", kills) as run:
        run.say("loading", "big:9b")
        run.kill()
        assert (run.tell()["cause"], run.tell()["ram"]) == ("SIGKILL while loading big:9b", None)
        for count, ram in ((4, 750), (5, 562)):
            run.say("loading", "big:9b")
            kills.write_text(str(count))
            run.kill()
            told = run.tell()
            assert (told["cause"], told["ram"]) == ("SIGKILL (out of memory) while loading big:9b", ram)
        assert told["aside"] == {"big:9b": "its load ended the server: SIGKILL (out of memory)"}
        kills.write_text("6")
        run.kill(signal.SIGSEGV)  # another process was killed for want of memory
        assert run.tell()["ram"] == 562


FILES = {
    "/proc/vmstat": "nr_free_pages 1\noom_kill 2\n",
    "/sys/fs/cgroup/memory.events": "oom 9\noom_kill 10\n",
    "/sys/fs/cgroup/a/b/memory.events": "oom_kill 100\noom_group_kill 0\n",
    "/sys/fs/cgroup/memory/c/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1000\n",
}


@pytest.mark.parametrize(
    ("groups", "count"),
    [
        ("", 2),
        ("0::/a/b\n", 112),
        ("0::/\n", 12),
        ("9:name=systemd:/c\n4:memory:/c\n", 1002),
        ("4:cpu,memory:/c\n0::/\n", 1012),
    ],
)
def test_the_kernels_counts_are_found(groups: str, count: int) -> None:
    assert supervisor.oom_kills(lambda path: {**FILES, "/proc/self/cgroup": groups}.get(path, "")) == count


@pytest.mark.parametrize(
    ("arguments", "variable", "wanted"),
    [
        (["serve"], None, True),
        (["serve", "--port", "1"], "", True),
        (["serve"], "0", False),
        (["serve"], "False", False),
        (["serve", "--supervise"], "0", True),
        (["serve", "--no-supervise"], "1", False),
        (["serve", "--no-supervise", "--supervise"], None, True),
        (["fit"], None, False),
        ([], None, False),
    ],
)
def test_serve_is_supervised_unless_told_otherwise(arguments: list[str], variable: str | None, wanted: bool) -> None:
    assert supervisor.wanted(arguments, {} if variable is None else {"LOCALLAB_SUPERVISE": variable}) is wanted


def test_nothing_heavy_is_imported() -> None:
    code = "import locallab.supervisor, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parents[2], check=True
    ).stdout
    assert not {"click", "msgspec", "logging", "asyncio", "email", "dataclasses"} & set(loaded.split())
