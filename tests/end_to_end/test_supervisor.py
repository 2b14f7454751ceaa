"""`locallab serve` whose server is killed, with the real model and clients that go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support import tiny_gguf
from tests.support.cli_process import ROOT, command, serving
from tests.support.fake_tunnel import TOKEN, FakeNgrok
from tests.support.served_process import Process
from tests.support.served_process import serving as serving_quietly
from tests.support.wait import LONG_PATIENCE, until

KILLS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
SMALL = ("--context", "512", "--threads", "1", "--no-rate-limit")


class Client:
    """Sends one request after another until it is stopped, and keeps when each began and what came of it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopped = threading.Event()
        self.outcomes: list[tuple[float, int | None]] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        body = {"prompt": "Once", "max_tokens": 8, "ignore_eos": True}
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                answer = httpx.post(f"{self._url}/v1/completions", json=body, timeout=LONG_PATIENCE)
                self.outcomes.append((began, answer.json()["usage"]["completion_tokens"]))
            except httpx.TransportError:
                self.outcomes.append((began, None))


def server_pid(url: str) -> int:
    return Process(url, None).pid  # type: ignore[arg-type]


def test_what_begins_after_a_restart_is_answered(model_path: Path) -> None:
    with serving_quietly(model_path, *SMALL) as server:
        supervisor = psutil.Process(server.process.pid)
        handles, pids, kills = supervisor.num_fds(), [server.pid], []
        clients = [Client(server.url) for _ in range(3)]
        try:
            for restarts, number in enumerate(KILLS, 1):
                until(lambda: server.stats()["running"] > 0)
                kills.append((time.monotonic(), number))
                os.kill(pids[-1], number)
                health = httpx.get(f"{server.url}/health", timeout=LONG_PATIENCE).json()
                kills.append((time.monotonic(), 0))
                assert (health["restarts"], health["last_end"]) == (restarts, signal.Signals(number).name)
                pids.append(server.pid)
        finally:
            for each in clients:
                each.stop()
        # A request that began before a kill, or found its connection in the dying server's hands, may be lost: no other.
        broken = [began for client in clients for began, tokens in client.outcomes if tokens is None]
        assert len(broken) <= len(KILLS) * len(clients)
        assert not any(
            back < began < kill for began in broken for (back, _), (kill, _) in zip(kills[1::2], kills[2::2], strict=False)
        )
        assert all(tokens == 8 for client in clients for _, tokens in client.outcomes if tokens is not None)
        assert len(set(pids)) == 4 and [each.pid for each in supervisor.children()] == pids[-1:]
        assert supervisor.num_fds() == handles + 0
        assert supervisor.memory_info().rss < 20 << 20
        server.process.terminate()
        assert server.process.wait(LONG_PATIENCE) == 0
        assert not any(map(psutil.pid_exists, pids))


def test_a_signal_to_the_group_of_both_processes_is_one(model_path: Path) -> None:
    """Ctrl-C in a terminal, and a service manager that ends a control group, reach the server twice."""
    body = {"prompt": "Once", "max_tokens": 40, "stream": True, "ignore_eos": True}
    with serving("--model", str(model_path), "--port", "0", "--grace", "60", *SMALL) as (process, base, _):
        server = server_pid(base)
        with httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=LONG_PATIENCE) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            for pid in (server, process.pid):
                os.kill(pid, signal.SIGINT)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        process.communicate(timeout=LONG_PATIENCE)
    assert process.returncode == 0


def test_without_a_supervisor_the_server_is_the_process(model_path: Path) -> None:
    with serving("--model", str(model_path), "--port", "0", "--no-supervise", *SMALL) as (process, base, _):
        assert server_pid(base) == process.pid
        process.send_signal(signal.SIGSEGV)
        assert process.wait(LONG_PATIENCE) == -signal.SIGSEGV


ABORTING = """
import os, sys
from locallab import __main__
from locallab.pool import pool
pool.open_engine = lambda *arguments: os.abort()
__main__.main()
"""


def test_a_start_model_whose_load_crashes_is_not_loaded_again(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "bad.gguf", "llama")
    arguments = [sys.executable, "-c", ABORTING, "serve", "--model", str(model), "--port", "0", "--log-level", "error"]
    reason = "its load ended the server: SIGABRT"
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        base, told = process.stdout.readline().split()[-1], process.stdout.readline()
        health = httpx.get(f"{base}/health", timeout=LONG_PATIENCE).json()
        asked = httpx.post(f"{base}/v1/completions", json={"model": "bad", "prompt": "hi"}, timeout=LONG_PATIENCE)
        loaded = httpx.post(f"{base}/models/load", json={"model_id": "bad"}, timeout=LONG_PATIENCE)
        process.terminate()
        _, err = process.communicate(timeout=LONG_PATIENCE)
    assert told == f"  model    none: {reason}\n"
    assert (health["model"], health["set_aside"], health["last_end"]) == (None, {"bad": reason}, "SIGABRT while loading bad")
    assert (asked.status_code, int(asked.headers["retry-after"]) >= 10) == (503, True)
    assert f"{reason}; POST /models/load tries it again" in asked.json()["error"]["message"]
    assert f"{reason}; it may be tried again in" in loaded.text
    assert loaded.status_code == 503 and 0 < int(loaded.headers["retry-after"]) <= 60
    assert err.count("SIGABRT while loading bad ended the server, which is started again") == 1
    assert process.returncode == 0


def test_the_tunnel_is_opened_again(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLAB_NGROK_TOKEN", TOKEN)
    ngrok = FakeNgrok(tmp_path, monkeypatch)
    with command("--model", str(model_path), "--tunnel", "--port", "0", "--grace", "0", *SMALL) as process:
        assert process.stdout
        addresses = (line for line in process.stdout if line.startswith("Public address"))
        next(addresses)
        [server] = psutil.Process(process.pid).children()
        server.kill()
        next(addresses)
        assert (len(ngrok.pids), len(ngrok.running)) == (2, 1)
        process.terminate()
        _, err = process.communicate(timeout=LONG_PATIENCE)
    assert (process.returncode, ngrok.running) == (0, [])
    assert "SIGKILL ended the server, which is started again" in err
