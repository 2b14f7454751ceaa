from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import unix_connect

from locallab.errors import ConfigError
from locallab.keys import Keyring, KeyStore
from locallab.server import listener, runner
from locallab.server.app import create_app
from locallab.server.dialects.assistant.websocket import PATH
from locallab.settings import ServerSettings
from tests.support.fake_pool import making
from tests.support.wait import PATIENCE


def test_bound_but_not_listening() -> None:
    with listener.bind("127.0.0.1", 0) as sock, pytest.raises(ConnectionRefusedError):
        socket.create_connection(sock.getsockname(), timeout=PATIENCE)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port: {port} on 127.0.0.1 is in use"):
            listener.bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["", "no such host", "192.0.2.1", "a" * 70 + ".example"])
def test_a_bad_host_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match="host: "):
        listener.bind(host, 0)


def test_localhost_is_ipv4() -> None:
    with listener.bind("localhost", 0) as sock:
        assert sock.family == socket.AF_INET


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locallab.sock"


@contextlib.contextmanager
def serving(path: Path, folder: Path, **options: Any) -> Iterator[httpx.Client]:
    """Serve a fake model on a Unix socket; yield a client of it."""
    settings = ServerSettings(**{"uds": str(path), "grace": 0, **options})
    with making(folder) as made, listener.opened(settings) as sock:
        made.pool.load_now("tiny:1b")
        app = create_app(made.pool, settings, Keyring(settings, KeyStore(folder / "keys.json")))
        server = runner.Background(app, sock, settings)
        transport = httpx.HTTPTransport(uds=str(path))
        try:
            with httpx.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE) as client:
                yield client
        finally:
            server.stop()


def test_a_unix_socket_serves_and_is_gone_afterwards(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with serving(path, tmp_path) as client:
        assert client.get("/health").json()["status"] == "healthy"
        body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
        assert "data: [DONE]" in client.post("/v1/chat/completions", json=body).text
        with unix_connect(str(path), f"ws://localhost{PATH}", open_timeout=PATIENCE) as talk:
            talk.send('{"task": "chat", "prompt": "Hi"}')
            assert talk.recv(PATIENCE)
    assert "unix GET /health 200" in caplog.text
    assert not path.exists()


def test_the_proxy_in_front_says_whom_it_asks_for(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with serving(path, tmp_path, native_rate="2/hour") as client:

        def left(*clients: str) -> list[str]:
            found = [client.get("/system/info", headers={"x-forwarded-for": each} if each else {}) for each in clients]
            return [answer.headers["x-ratelimit-remaining"] for answer in found]

        assert left("1.1.1.1", "1.1.1.1", "9.9.9.9, 2.2.2.2", "2.2.2.2", "", "") == ["1", "0", "1", "0", "1", "0"]
    assert "2.2.2.2 GET /system/info 200" in caplog.text


def test_connections_of_a_proxy_have_the_limit_of_all(path: Path, tmp_path: Path) -> None:
    with serving(path, tmp_path, connections_per_address=1) as client, contextlib.ExitStack() as held:
        silent = [held.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        for sock in silent:
            sock.connect(str(path))
        assert client.get("/health").status_code == 200
        for sock in silent:
            sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("mode", "bits"), [("660", 0o660), ("600", 0o600), ("666", 0o666)])
def test_who_may_connect(path: Path, mode: str, bits: int) -> None:
    with listener.opened(ServerSettings(uds=str(path), uds_mode=mode)):
        assert stat.S_IMODE(path.stat().st_mode) == bits


def test_it_is_not_public_and_has_an_address(path: Path) -> None:
    with listener.opened(ServerSettings(uds=str(path))) as sock:
        assert not listener.is_public(sock)
        assert listener.url(sock) == f"unix:{path}"
        with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))  # it does not listen yet


def test_what_a_killed_server_left_is_replaced(path: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    with serving(path, tmp_path) as client:
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("listens", [True, False], ids=["listening", "starting"])
def test_a_socket_in_use_stays_its_owners(path: Path, listens: bool) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        if listens:
            other.listen()
        with pytest.raises(ConfigError, match=f"uds: {path} is in use by another server"):
            listener.bind_path(str(path), 0o660)
        assert path.is_socket()


def test_what_another_server_has_put_in_its_place_stays(path: Path) -> None:
    with listener.opened(ServerSettings(uds=str(path))), socket.socket(socket.AF_UNIX) as other:
        path.unlink()
        other.bind(str(path))
    assert path.is_socket()


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_what_is_no_socket_is_never_removed(path: Path, tmp_path: Path, what: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    if what == "folder":
        path.mkdir()
    else:
        path.symlink_to(precious) if what == "link" else path.write_text("data")
    with pytest.raises(ConfigError, match=f"uds: {path} exists and is no socket"):
        listener.bind_path(str(path), 0o660)
    assert path.is_dir() if what == "folder" else path.read_text() == "data"


def test_a_path_too_long_is_told_its_length(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 60)
    size = len(os.fsencode(path))
    with pytest.raises(ConfigError, match=f"uds: {path} has {size} bytes; the path of a socket has at most 107"):
        listener.bind_path(str(path), 0o660)


def test_the_longest_path() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("x" * (listener.LONGEST_PATH - len(os.fsencode(folder)) - 1))
        with listener.opened(ServerSettings(uds=str(path))):
            assert path.is_socket()


@pytest.mark.parametrize("name", ["missing/x.sock", "file/x.sock"])
def test_a_path_without_a_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / name
    with pytest.raises(ConfigError, match=f"uds: no socket can be made at {path}: {path.parent} is no folder"):
        listener.bind_path(str(path), 0o660)
