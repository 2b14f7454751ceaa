"""WebSockets under the runner: their end on shutdown, the limit of messages, and the log."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from locallab.keys import Keyring, KeyStore
from locallab.models.store import Store
from locallab.pool import Pool
from locallab.server import listener, runner, websocket_protocol
from locallab.server.app import create_app
from locallab.server.dialects.assistant.websocket import PATH
from locallab.server.websocket_protocol import RESTARTING
from locallab.settings import EngineSettings, ServerSettings
from tests.support.fake_engine import FakeEngine, Step, registry, say
from tests.support.wait import PATIENCE

QUIET = logging.getLogger("tests.quiet client")
QUIET.disabled = True


class Server:
    """A running server, as its client sees it. Stop it only once: a second signal ends the process."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._stopped = False

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            os.kill(os.getpid(), signal.SIGTERM)

    @contextlib.contextmanager
    def connected(self, query: str = "", **options: Any) -> Iterator[ClientConnection]:
        with connect(f"ws://127.0.0.1:{self.port}{PATH}{query}", open_timeout=PATIENCE, logger=QUIET, **options) as connection:
            yield connection

    def refuses(self) -> None:
        """Wait until the server accepts no more connections."""
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
            except ConnectionResetError:
                continue
            except ConnectionRefusedError:
                return


Client = Callable[[Server], None]
Serving = Callable[..., None]


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """Run a server in the main thread while `client` talks to its port in another; then stop it."""

    def serve(client: Client, *steps: Step, **settings: Any) -> None:
        def make(path: Path, engine: EngineSettings, post: Any) -> Any:
            return FakeEngine(path, engine, post, script=lambda prompt, params: list(steps), context=8192)

        server_settings = ServerSettings(**{"port": 0, **settings})
        pool = Pool(registry(tmp_path), Store(tmp_path / "store"), engine=make, grace=0.0)
        pool.load_now("tiny:1b")
        app = create_app(pool, server_settings, Keyring(server_settings, KeyStore(tmp_path / "keys.json")))
        with listener.bind("127.0.0.1", 0) as sock, ThreadPoolExecutor(1) as other:
            server = Server(sock.getsockname()[1])
            talks = []
            assert runner.serve(app, sock, server_settings, lambda: talks.append(other.submit(talk, client, server))) == 0
            talks[0].result(PATIENCE)

    return serve


def talk(client: Client, server: Server) -> None:
    try:
        client(server)
    finally:
        server.stop()


def ask(connection: ClientConnection) -> None:
    connection.send(json.dumps({"prompt": "some words", "task": "chat"}))


def event(connection: ClientConnection) -> dict[str, Any]:
    return dict(json.loads(connection.recv(PATIENCE)))


def code_of(connection: ClientConnection) -> int | None:
    """Expect the server to close the connection next; return its code."""
    with pytest.raises(ConnectionClosed):
        connection.recv(PATIENCE)
    return connection.close_code


def test_a_request_that_runs_ends_and_then_the_connection(serving: Serving) -> None:
    go = threading.Event()

    def client(server: Server) -> None:
        with server.connected() as connection, server.connected() as idle:
            ask(connection)
            assert event(connection)["text"] == "a"
            server.stop()
            assert code_of(idle) == RESTARTING
            server.refuses()
            go.set()
            assert event(connection) == {"type": "token", "text": "b"}
            assert event(connection)["finish_reason"] == "stop"
            assert code_of(connection) == RESTARTING

    serving(client, b"a", go, b"b", grace=PATIENCE)


def test_a_request_that_does_not_end_in_time_gets_an_error(serving: Serving) -> None:
    def client(server: Server) -> None:
        with server.connected() as connection:
            ask(connection)
            assert event(connection)["text"] == "a"
            server.stop()
            last = event(connection)
            assert last["type"] == "error" and "closed" in last["detail"]
            assert code_of(connection) == RESTARTING

    serving(client, b"a", threading.Event(), grace=0.0)


def test_what_is_far_too_large_ends_the_connection(serving: Serving) -> None:
    def client(server: Server) -> None:
        with server.connected() as connection:
            connection.send("x" * (runner.MESSAGE_ROOM << 20))
            assert event(connection) == {"type": "error", "detail": "the message is larger than 1 MiB"}
            with contextlib.suppress(ConnectionClosed):  # it may stop reading early
                connection.send("x" * ((runner.MESSAGE_ROOM << 20) + 1))
            assert code_of(connection) in (
                1009,
                1006,
            )  # unread data can reset the connection before the code arrives
        with server.connected() as connection:
            ask(connection)
            assert event(connection)["type"] == "token"

    serving(client, *say("fine"), max_body_mib=1)


def test_many_large_messages_that_never_end_are_bounded_together(serving: Serving) -> None:
    """What one address has begun to send fills `AT_ONCE` messages at most, whether it comes in one frame or in many."""
    part = (runner.MESSAGE_ROOM << 20) - 1000

    def client(server: Server) -> None:
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(server.connected()) for _ in range(websocket_protocol.AT_ONCE)]
            for connection in held:
                connection.socket.sendall(bytes([1, 0xFF]) + (part + 500).to_bytes(8, "big") + bytes(4 + part))
            with server.connected() as other:
                with contextlib.suppress(ConnectionClosed):
                    for piece in ("x" * part, "y" * part):
                        other.send(iter([piece, piece]))
                assert code_of(other) in (websocket_protocol.CROWDED, 1006)
            for connection in held:
                connection.socket.shutdown(socket.SHUT_RDWR)
        with server.connected() as connection:
            connection.send("x" * part)
            assert event(connection)["type"] == "error"

    serving(client, *say("fine"), max_body_mib=1, grace=0.0)


def frames(kind: int, data: bytes, count: int) -> bytes:
    return (bytes([0x80 | kind, 0x80 | len(data)]) + bytes(4) + data) * count


FLOODS = {"pings": (9, b"x" * 100), "pongs": (10, b"x"), "messages": (1, b"{}"), "binary": (2, b"")}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_frames_waits_in_the_socket(serving: Serving, name: str) -> None:
    """The client can send no more than the system's buffers hold, and others do not notice."""

    def client(server: Server) -> None:
        with server.connected() as flooding, server.connected() as other:
            flooding.socket.settimeout(0.3)
            flood, sent = frames(*FLOODS[name], count=20_000), 0
            with pytest.raises(TimeoutError):
                while sent < 256 << 20:
                    sent += flooding.socket.send(flood)
            assert sent < 64 << 20
            ask(other)
            assert event(other)["type"] == "token"
            flooding.socket.shutdown(socket.SHUT_RDWR)

    serving(client, *say("fine"), rate_limit=False, grace=0.0)


def test_frames_within_the_rate_are_all_taken(serving: Serving) -> None:
    def client(server: Server) -> None:
        with server.connected() as connection:
            count = websocket_protocol.FRAMES + 20
            for number in range(count):
                connection.send(json.dumps({"id": number, "type": "cancel"}))
            assert [event(connection)["id"] for _ in range(count)] == list(range(count))

    serving(client, rate_limit=False)


@pytest.mark.parametrize("line", ["Cookie: " + "a" * 10_000, "Sec-WebSocket-Version: 8"], ids=["long", "version"])
def test_a_handshake_that_cannot_be_read_is_answered(serving: Serving, line: str) -> None:
    def client(server: Server) -> None:
        lines = [f"GET {PATH} HTTP/1.1", "Host: 127.0.0.1", "Connection: Upgrade", "Upgrade: websocket", line, "", ""]
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as sock:
            sock.sendall("\r\n".join(lines).encode())
            assert sock.recv(100).startswith(b"HTTP/1.1 400 ")

    serving(client)


def test_no_key_is_logged(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def client(server: Server) -> None:
        for query, headers in ((f"?api_key={'k' * 20}", {}), ("", {"Authorization": f"Bearer {'k' * 20}"})):
            with server.connected(query, additional_headers=headers) as connection:
                ask(connection)
                assert event(connection)["type"] == "token"

    serving(client, *say("fine"), api_key="k" * 20)
    assert "k" * 20 not in caplog.text and PATH in caplog.text


def test_a_refusal_is_no_error_of_the_server(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    def client(server: Server) -> None:
        with pytest.raises(InvalidStatus) as refusal, server.connected():
            pass
        assert refusal.value.response.status_code == 401
        assert b"an API key is required" in refusal.value.response.body

    serving(client, api_key="k" * 20)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
