"""scripts/deploy/locallab.service: systemd's own checks of it, and what its ExecStart does under a service manager."""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from locallab.server.runner import ENDING
from locallab.settings import ServerSettings
from tests.support import seccomp_exec, tiny_gguf
from tests.support.deploy_programs import program, replaced
from tests.support.wait import LONG_PATIENCE, free_port, until

UNIT = "locallab.service"
COMMAND = "/opt/locallab/bin/locallab"
HERE = f"{sys.executable} -m locallab"
EXPOSURE = 2.5
"""Of 10: what systemd's analysis may find open. GPU, network and the machine's /proc make 1.9 of it."""


def directives() -> dict[str, list[str]]:
    """Return the values of each directive of [Service]."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in replaced(UNIT, {}).splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with a command that this machine has."""
    path = tmp_path / UNIT
    path.write_text(replaced(UNIT, {COMMAND: HERE}))
    return path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program("systemd-analyze", "systemd"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "SYSTEMD_LOG_LEVEL": "info"})


def test_systemd_has_nothing_against_it(installed: Path) -> None:
    done = analyze("verify", "--man=no", str(installed))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_finds_little_open(installed: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE * 10:.0f}", str(installed))
    assert done.returncode == 0, done.stdout


def environment(folder: Path) -> Mapping[str, str]:
    """Return the variables of the unit, with its folders below another one."""
    [line] = directives()["Environment"]
    for specifier, name in {"%S": "lib", "%C": "cache", "%E": "etc"}.items():
        line = line.replace(specifier, str(folder / name))
    return dict(each.split("=", 1) for each in shlex.split(line))


def system_calls() -> tuple[set[str], set[str]]:
    """Return the system calls that the unit allows, and those that it takes back out of them."""
    groups: dict[str, set[str]] = {}
    for line in analyze("syscall-filter").stdout.splitlines():
        if line.startswith("@"):
            group = groups.setdefault(line.strip(), set())
        elif line.startswith("    ") and not line.lstrip().startswith("#"):
            group.add(line.strip())

    def members(name: str) -> set[str]:
        return {name} if not name.startswith("@") else set().union(*map(members, groups[name]))

    allowed, refused = set(), set()
    for value in ["@default", *directives()["SystemCallFilter"]]:
        names = set().union(*(members(name) for name in value.removeprefix("~").split()))
        (refused if value.startswith("~") else allowed).update(names)
    return allowed - refused, allowed & refused


def test_its_command_tells_when_it_is_ready_and_when_it_stops_within_the_filter(tmp_path: Path) -> None:
    """One that makes a system call which the unit does not know ends by SIGSYS here."""
    [start] = directives()["ExecStart"]
    port = free_port()
    own = {"LOCALLAB_MODEL": str(tiny_gguf.write(tmp_path / "tiny.gguf", "llama")), "LOCALLAB_PORT": str(port)}
    for name in ("lib", "cache"):
        (tmp_path / name / "locallab").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        variables = {**os.environ, **environment(tmp_path), **own, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        filtered = [sys.executable, seccomp_exec.__file__, *(",".join(sorted(calls)) for calls in system_calls())]
        command = [*filtered, *shlex.split(start.replace(COMMAND, HERE))]
        process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL)

        def told() -> bytes:
            until(lambda: process.poll() is not None or bool(select.select([manager], [], [], 0.1)[0]), LONG_PATIENCE)
            return manager.recv(100)

        try:
            assert told() == b"READY=1"
            assert httpx.get(f"http://127.0.0.1:{port}/health/ready").json()["status"] == "ready"  # at the first try
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "hi", "max_tokens": 4}, timeout=60)
            assert answer.json()["usage"]["completion_tokens"] > 0
            process.send_signal(signal.SIGTERM)
            assert told() == b"STOPPING=1"
            assert process.wait(float(directives()["TimeoutStopSec"][0])) == 0
        finally:
            process.kill()
            process.wait()
    assert directives()["Type"] == ["notify"]
    assert list((tmp_path / "lib" / "locallab" / "trials").iterdir())  # its state is where the unit lets it write


def test_running_requests_have_the_time_to_end() -> None:
    assert float(directives()["TimeoutStopSec"][0]) > ServerSettings().grace + 2 * ENDING


def test_a_wrong_setting_has_the_status_that_prevents_a_restart(tmp_path: Path) -> None:
    [status] = directives()["RestartPreventExitStatus"]
    done = subprocess.run(
        [*shlex.split(HERE), "serve"], env={**os.environ, "LOCALLAB_PORT": "x"}, capture_output=True, timeout=LONG_PATIENCE
    )
    assert done.returncode == int(status)
