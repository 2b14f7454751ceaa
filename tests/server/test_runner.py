from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from locallab.errors import ConfigError, LocalLabError
from locallab.server import listener, runner
from locallab.settings import ServerSettings
from tests.support.wait import PATIENCE

ROOT = Path(__file__).parents[2]
SLOW_APP = ROOT / "tests/support/slow_app.py"


class Slow:
    """A running slow_app."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout
        word, port = process.stdout.readline().split()
        assert word == "ready"
        self.port = int(port)
        self.url = f"http://127.0.0.1:{port}"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@contextlib.contextmanager
def start(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(SLOW_APP), *arguments]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def slow(grace: float, manner: str) -> Iterator[Slow]:
    with start(str(grace), manner) as process:
        yield Slow(process)


@contextlib.contextmanager
def streaming(server: Slow, count: int) -> Iterator[Iterator[str]]:
    """Open a stream of `count` numbers, read the first, and yield an iterator of the rest."""
    with httpx.stream("GET", f"{server.url}/{count}", timeout=PATIENCE) as response:
        pieces = response.iter_text()
        assert next(pieces).startswith("0 ")
        yield pieces


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_what_runs_finishes_within_the_grace(number: signal.Signals) -> None:
    with slow(PATIENCE, "heeds") as server, streaming(server, 20) as pieces:
        server.stop(number)
        assert "".join(pieces).endswith("19 end")
        code, out, err = server.ended()
    assert (code, out, err) == (0, "lifespan ended\n", "")


def test_after_the_grace_the_app_ends_its_streams() -> None:
    with slow(0.2, "heeds") as server, streaming(server, 10_000) as pieces:
        server.stop()
        assert "".join(pieces).endswith("cancelled")
        code, _, err = server.ended()
    assert (code, err) == (0, "")


def test_a_stream_that_does_not_end_is_cut() -> None:
    with slow(0.2, "ignores") as server, streaming(server, 10_000) as pieces:
        server.stop()
        with pytest.raises(httpx.TransportError):
            list(pieces)
        code, _, err = server.ended()
    assert code == 0
    assert "Traceback" not in err


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_exits_at_once(second: signal.Signals) -> None:
    with slow(PATIENCE, "heeds") as server, streaming(server, 10_000):
        server.stop()
        refused(server)
        server.stop(second)
        code, out, _ = server.ended()
    assert code == 128 + second
    assert out == ""


def test_after_the_first_signal_connections_are_refused() -> None:
    with slow(PATIENCE, "heeds") as server, streaming(server, 40) as pieces:
        server.stop()
        refused(server)
        assert "".join(pieces).endswith("end")
        assert server.ended()[0] == 0


def test_idle_connections_do_not_hold_up_the_end() -> None:
    with slow(PATIENCE, "heeds") as server, httpx.Client(timeout=PATIENCE) as client:
        assert client.get(f"{server.url}/1").text == "0 end"
        server.stop()
        assert server.ended()[0] == 0


def test_an_app_that_cannot_start_is_an_exit_status() -> None:
    with start("1", "broken") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode not in (0, None)
    assert out == ""
    assert "no model" in err
    assert "Traceback" not in err


def refused(server: Slow) -> None:
    """Wait until a new connection is refused."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE).close()
        except ConnectionResetError:  # it entered the backlog just before
            continue
        except ConnectionRefusedError:
            return


def test_a_port_taken_after_binding_is_named() -> None:
    """Linux lets two sockets bind one port as long as neither listens."""
    with listener.bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with listener.bind("127.0.0.1", port) as second:
            first.listen()
            with pytest.raises(ConfigError, match=f"port: {port} on 127.0.0.1 is in use"):
                runner.serve(Lifespan(), second, ServerSettings(host="127.0.0.1", port=port), on_ready=pytest.fail)


class Lifespan:
    """An app with a lifespan only."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})


def test_localhost_is_both_protocols() -> None:
    with listener.bind("localhost", 0) as sock:
        server = runner.Background(Lifespan(), sock, ServerSettings(host="localhost", grace=0))
        port = sock.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=PATIENCE).close()
        server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1", port), timeout=PATIENCE)


def test_localhost_without_a_free_port_on_ipv6_is_ipv4(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with listener.bind("localhost", port) as sock:
            server = runner.Background(Lifespan(), sock, ServerSettings(host="localhost", grace=0))
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
            server.stop()
    assert f"port {port} on ::1 is in use" in caplog.text


def test_an_address_is_itself_only() -> None:
    with listener.bind("127.0.0.1", 0) as sock:
        server = runner.Background(Lifespan(), sock, ServerSettings(host="127.0.0.1", grace=0))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("::1", sock.getsockname()[1]), timeout=PATIENCE)
        server.stop()


def test_not_in_the_main_thread() -> None:
    caught: list[BaseException] = []

    def attempt() -> None:
        with listener.bind("127.0.0.1", 0) as sock:
            try:
                runner.serve(Lifespan(), sock, ServerSettings(), on_ready=lambda: None)
            except RuntimeError as error:
                caught.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join(PATIENCE)
    assert "main thread" in str(caught[0])


class Unready(Lifespan):
    """An app that cannot start."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no model"})


def test_in_the_background_signals_stay_the_programs() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listener.bind("127.0.0.1", 0) as sock:
        server = runner.Background(Lifespan(), sock, ServerSettings(grace=0))
        assert signal.getsignal(signal.SIGTERM) is before
        socket.create_connection(sock.getsockname(), timeout=PATIENCE).close()
        server.stop()
        server.stop()
    assert "server" not in {thread.name for thread in threading.enumerate()}


def test_in_the_background_an_app_that_cannot_start_is_an_error() -> None:
    with listener.bind("127.0.0.1", 0) as sock, pytest.raises(LocalLabError, match="could not start"):
        runner.Background(Unready(), sock, ServerSettings())
    assert "server" not in {thread.name for thread in threading.enumerate()}
