from __future__ import annotations

import contextlib
import datetime
import json
import logging
import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from websockets.sync.client import connect

from locallab.errors import ConfigError
from locallab.server import listener, runner, tls
from locallab.server.app import create_app
from locallab.settings import ServerSettings
from tests.support.certificates import Certificate, issue, with_passphrase
from tests.support.fake_pool import making
from tests.support.wait import PATIENCE, until


class App:
    """Answers with the scheme of the request."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        body = scope["scheme"].encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return issue(tmp_path)


@contextlib.contextmanager
def serving(certificate: Certificate, app: Any = None, **options: Any) -> Iterator[tuple[runner.Background, int]]:
    settings = ServerSettings(**{"host": "127.0.0.1", "port": 0, "grace": 0, **certificate.settings(), **options})
    with listener.opened(settings) as sock:
        port = sock.getsockname()[1]
        server = runner.Background(app or App(), sock, settings)
        try:
            yield server, port
        finally:
            server.stop()


@contextlib.contextmanager
def shaken(certificate: Certificate, port: int) -> Iterator[ssl.SSLSocket]:
    """Yield a connection that has shaken hands."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    with raw, certificate.trusting().wrap_socket(raw, server_hostname="localhost") as sock:
        yield sock


def serial(certificate: Certificate, port: int) -> str:
    """Return the serial number of the certificate that a new connection gets."""
    with shaken(certificate, port) as sock:
        found = sock.getpeercert()
        assert found
        return str(found["serialNumber"])


def exchange(port: int, data: bytes) -> bytes:
    """Return what the server sends until it closes a connection on which it gets `data`."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(data)
        with contextlib.suppress(ConnectionError):
            return sock.recv(100)
        return b""


def test_https(certificate: Certificate) -> None:
    with serving(certificate) as (_, port), httpx.Client(verify=certificate.trusting()) as client:
        assert client.get(f"https://localhost:{port}/").text == "https"
        assert client.get(f"https://127.0.0.1:{port}/").text == "https"


def test_localhost_is_both_protocols(certificate: Certificate) -> None:
    with serving(certificate, host="localhost") as (_, port):
        for address in ("127.0.0.1", "::1"):
            raw = socket.create_connection((address, port), timeout=PATIENCE)
            certificate.trusting().wrap_socket(raw, server_hostname="localhost").close()


def test_a_request_right_behind_the_handshake(certificate: Certificate) -> None:
    """It often comes in one packet with the handshake's last part."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with serving(certificate) as (_, port):
        for _ in range(20):
            with shaken(certificate, port) as sock:
                sock.sendall(request)
                assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("version", "accepted"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
    ids=["1.1", "1.2", "1.3"],
)
@pytest.mark.filterwarnings("ignore:.*TLSv1_1 is deprecated")
def test_versions(certificate: Certificate, version: ssl.TLSVersion, accepted: bool) -> None:
    client = certificate.trusting()
    client.set_ciphers("DEFAULT@SECLEVEL=0")  # else OpenSSL does not offer the old ones
    client.minimum_version = client.maximum_version = version
    with (
        serving(certificate) as (_, port),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw,
        contextlib.nullcontext() if accepted else pytest.raises(ssl.SSLError),
        client.wrap_socket(raw, server_hostname="localhost") as sock,
    ):
        assert sock.version()


def test_a_model_answers_and_streams_by_websocket(certificate: Certificate, tmp_path: Path) -> None:
    with making(tmp_path) as made:
        made.pool.load_now("tiny:1b")
        app = create_app(made.pool, ServerSettings(auth=False))
        with serving(certificate, app) as (_, port), httpx.Client(verify=certificate.trusting()) as client:
            body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
            lines = client.post(f"https://localhost:{port}/v1/chat/completions", json=body).text.splitlines()
            assert [line for line in lines if line][-1] == "data: [DONE]"
            where = f"wss://localhost:{port}/api/v1/assistant/stream"
            with connect(where, ssl=certificate.trusting(), open_timeout=PATIENCE) as talk:
                talk.send(json.dumps({"task": "chat", "prompt": "Hi"}))
                while (event := json.loads(talk.recv(PATIENCE)))["type"] != "done":
                    assert event["type"] != "error", event


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03", b"\xff" * 100], ids=["HTTP", "little", "noise"]
)
def test_what_is_no_handshake_ends_without_a_trace(
    certificate: Certificate, data: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "TIMEOUTS", {"ssl_handshake_timeout": 0.2, "ssl_shutdown_timeout": 0.2})
    caplog.set_level(logging.INFO)
    with serving(certificate) as (_, port):
        assert not exchange(port, data).startswith(b"HTTP")
        until(lambda: "127.0.0.1: no TLS connection: " in caplog.text)
        assert serial(certificate, port)
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_who_does_not_shake_hands_keeps_nobody_out_and_holds_nothing_up(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "TIMEOUTS", {**tls.TIMEOUTS, "ssl_handshake_timeout": 3600.0})
    with contextlib.ExitStack() as held, serving(certificate, connections_per_address=4) as (server, port):
        silent = [held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)) for _ in range(40)]
        assert serial(certificate, port)
        until(lambda: sum(map(is_cut, silent)) >= 36)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 5


def is_cut(sock: socket.socket) -> bool:
    """Return whether the server has ended the connection, on which it has sent nothing."""
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_connection_counts_once(certificate: Certificate) -> None:
    with (
        serving(certificate, connections_per_address=1) as (_, port),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE),  # makes room
        httpx.Client(verify=certificate.trusting()) as client,
    ):
        assert {client.get(f"https://127.0.0.1:{port}/").text for _ in range(5)} == {"https"}
        for _ in range(5):
            assert serial(certificate, port)


def test_an_idle_client_that_ignores_the_end_does_not_hold_up_the_servers(certificate: Certificate) -> None:
    with serving(certificate, grace=60) as (server, port), shaken(certificate, port):
        began = time.monotonic()
        server.stop()  # the client does not read, and so does not answer
        assert time.monotonic() - began < 10


def test_a_renewed_certificate_is_used_by_new_connections(tmp_path: Path, certificate: Certificate) -> None:
    with serving(certificate) as (_, port), shaken(certificate, port) as old:
        before = serial(certificate, port)
        renewed = issue(tmp_path)
        until(lambda: _is_trusted(renewed, port))
        assert serial(renewed, port) != before
        old.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert old.recv(1000).startswith(b"HTTP/1.1 200 ")


def _is_trusted(certificate: Certificate, port: int) -> bool:
    try:
        return bool(serial(certificate, port))
    except ssl.SSLError:
        return False


def test_a_changed_certificate_is_loaded_once_the_files_rest(certificate: Certificate, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    found = tls.Certificates(str(certificate.cert), str(certificate.key))
    first, key = found.context, certificate.key.read_bytes()
    found.refresh()
    assert found.context is first
    issue(tmp_path)
    new_key = certificate.key.read_bytes()
    certificate.key.write_bytes(key)  # not replaced yet
    found.refresh()
    certificate.key.write_bytes(new_key + b"\n")
    found.refresh()  # it has changed again
    assert found.context is first
    found.refresh()
    assert found.context is not first
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_changed_certificate_that_cannot_be_used_leaves_the_old_one(
    certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    found = tls.Certificates(str(certificate.cert), str(certificate.key))
    first = found.context
    certificate.cert.write_text("soon")
    for _ in range(5):
        found.refresh()
    assert found.context is first
    [record] = caplog.records
    assert record.getMessage().startswith("the changed certificate is not used, the old one remains: tls_cert: ")
    certificate.cert.unlink()
    for _ in range(5):
        found.refresh()
    assert "No such file" in caplog.text


@pytest.mark.parametrize(
    ("names", "address", "name"),
    [
        (["chat.example.com", "localhost"], "127.0.0.1", "localhost"),
        (["chat.example.com", "127.0.0.1"], "127.0.0.1", "127.0.0.1"),
        (["*.example.com", "chat.example.com"], "127.0.0.1", "chat.example.com"),
        (["*.example.com"], "127.0.0.1", "127.0.0.1"),
    ],
)
def test_what_clients_should_call_it(tmp_path: Path, names: list[str], address: str, name: str) -> None:
    made = issue(tmp_path, *names)
    assert tls.Certificates(str(made.cert), str(made.key)).name(address) == name


def test_an_expired_certificate_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expired = issue(tmp_path, not_after=datetime.datetime(2020, 1, 2), not_before=datetime.datetime(2020, 1, 1))
    assert tls.configured(ServerSettings(**expired.settings()))  # type: ignore[arg-type]
    assert caplog.messages == [f"tls_cert: clients will refuse {expired.cert}: certificate has expired"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("no key", "tls_cert: needs tls_key too"),
        ("no cert", "tls_key: needs tls_cert too"),
        ("missing cert", r"tls_cert: \S+ cannot be read: No such file"),
        ("missing key", r"tls_key: \S+ cannot be read: No such file"),
        ("folder", r"tls_key: \S+ cannot be read: Is a directory"),
        ("empty cert", r"tls_cert: \S+ holds no certificate in PEM form"),
        ("cut cert", r"tls_cert: \S+ holds no certificate in PEM form"),
        ("cut key", r"tls_key: \S+ holds no private key in PEM form"),
        ("swapped", r"tls_cert: \S+ holds no certificate in PEM form"),
        ("another's", r"tls_key: \S+ is not the key of the certificate in \S+cert.pem$"),
        ("another kind", r"tls_key: \S+ is not the key of the certificate in \S+cert.pem$"),
        ("passphrase", r"tls_key: \S+ has a passphrase"),
        ("socket", "tls_cert: a Unix socket has no TLS"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_one_line(
    certificate: Certificate, tmp_path: Path, damage: str, reason: str
) -> None:
    settings: dict[str, Any] = certificate.settings()
    cert, key = certificate.cert.read_bytes(), certificate.key.read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    match damage:
        case "no key" | "no cert":
            del settings["tls_key" if damage == "no key" else "tls_cert"]
        case "missing cert" | "missing key":
            (certificate.cert if damage == "missing cert" else certificate.key).unlink()
        case "folder":
            settings["tls_key"] = str(other)
        case "empty cert":
            certificate.cert.write_bytes(b"")
        case "cut cert":
            certificate.cert.write_bytes(cert[: len(cert) // 4])
        case "cut key":
            certificate.key.write_bytes(key[: len(key) // 2])
        case "swapped":
            settings = {"tls_cert": settings["tls_key"], "tls_key": settings["tls_cert"]}
        case "another's" | "another kind":
            kind = trustme.KeyType.ECDSA if damage == "another's" else trustme.KeyType.RSA
            settings["tls_key"] = str(issue(other, key_type=kind).key)
        case "passphrase":
            certificate.key.write_bytes(with_passphrase(key))
        case "socket":
            settings["uds"] = str(tmp_path / "x.sock")
    with pytest.raises(ConfigError) as caught:
        tls.configured(ServerSettings(**settings))
    assert re.search(reason, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_certificate_is_no_tls() -> None:
    assert tls.configured(ServerSettings()) is None
    assert tls.configured(ServerSettings(tls_cert="", tls_key="")) is None
