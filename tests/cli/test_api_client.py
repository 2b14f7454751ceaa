from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from locallab.cli import api_client
from locallab.cli.api_client import ApiClient, Piece
from locallab.errors import ConfigError, NoServer, ServerError, UnknownModel
from locallab.keys import KeyStore
from tests.support.certificates import issue
from tests.support.fake_engine import say
from tests.support.http_server import Serve, Served
from tests.support.listening import behind

HELLO = [{"role": "user", "content": "Hello"}]


@contextlib.contextmanager
def answering(status: int, body: bytes, length: int | None = None) -> Iterator[str]:
    """Serve a fixed answer, which breaks off if its `length` is beyond the body; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("https://host.example/v1", "https://host.example"),
        ("http://[::1]:9/v1/", "http://[::1]:9"),
        ("unix:/run/locallab.sock", "unix:/run/locallab.sock"),
    ],
)
def test_addresses_as_people_write_them(url: str, whole: str) -> None:
    with ApiClient(url) as server:
        assert server.url == whole


@pytest.mark.parametrize("url", ["http://", "ftp://host", "http://host:port", "http://host:0", "http://[::1"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="--url: "):
        ApiClient(url)


def test_the_server_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_client.default_url() == "http://127.0.0.1:8000"
    monkeypatch.setenv("LOCALLAB_PORT", "8123")
    assert api_client.default_url() == "http://127.0.0.1:8123"
    monkeypatch.setenv("LOCALLAB_PORT", "0")
    assert api_client.default_url() == "http://127.0.0.1:8000"


def test_no_proxy_is_asked_for_this_machine(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with ApiClient(served.url) as server:
        assert server.alive()


def test_a_server_that_is_ours_and_one_that_is_not(served: Served, nowhere: str) -> None:
    with ApiClient(served.url) as server:
        assert server.alive()
    with ApiClient(nowhere) as server:
        assert not server.alive()
    for body in (b"<html>", b"[]", b'{"service": "other"}'):
        with answering(200, body) as url, ApiClient(url) as server:
            assert not server.alive()


def test_nobody_there(nowhere: str) -> None:
    with (
        ApiClient() as server,
        pytest.raises(NoServer, match=f"no server answers at {nowhere}; start one with `locallab serve`"),
    ):
        server.get("/models/current")


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>", "is not LocalLab"),
        (500, b"<html>", "is not LocalLab"),
        (503, b'{"detail": "not now"}', "^not now$"),
        (404, b'{"error": {"message": "what?"}}', "^what\\?$"),
        (404, b'{"error": "where?"}', "^where\\?$"),
        (502, b"[]", "answered with status 502"),
    ],
)
def test_what_a_server_answers_instead(status: int, body: bytes, message: str) -> None:
    with answering(status, body) as url, ApiClient(url) as server, pytest.raises(ServerError, match=message):
        server.get("/")


def test_an_answer_that_breaks_off() -> None:
    first = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": null}]}\n\n'
    for length in (None, 10_000):
        with answering(200, first, length) as url, ApiClient(url) as server:
            pieces = server.chat("m", HELLO, {})
            assert next(pieces) == Piece("a")
            with pytest.raises(ServerError, match="before the answer was complete"):
                next(pieces)


def test_an_error_in_the_middle_of_a_stream(served: Served) -> None:
    served.script(b"a", RuntimeError("boom"))
    with ApiClient(served.url) as server, pytest.raises(ServerError, match="internal error"):
        list(server.chat("tiny:1b", HELLO, {}))


def test_an_answer_in_pieces(served: Served) -> None:
    served.script(*say("one two"))
    with ApiClient(served.url) as server:
        pieces = list(server.chat("tiny:1b", HELLO, {"max_tokens": 5}))
    assert "".join(piece.text for piece in pieces) == "one t"
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length"]
    assert pieces[-1].whole and pieces[-1].whole["usage"]["completion_tokens"] == 5


def test_reasoning_is_separate() -> None:
    event = {"choices": [{"delta": {"reasoning_content": "hm"}, "finish_reason": None}]}
    assert api_client.chat_piece(event) == Piece("", "hm")


def test_keys(serve: Serve, tmp_path: Path) -> None:
    _, key = KeyStore(tmp_path / "keys.json").create("me", "free")
    with serve() as served:
        with (
            ApiClient(served.url) as server,
            pytest.raises(ServerError, match="requires an API key: set LOCALLAB_API_KEY or pass --api-key"),
        ):
            server.models()
        with ApiClient(served.url, "ll-wrong") as server, pytest.raises(ServerError, match="rejects this API key"):
            server.models()
        with ApiClient(served.url, key) as server:
            assert server.models()


def test_names_of_models(served: Served, tmp_path: Path) -> None:
    with ApiClient(served.url) as server:
        assert server.model_id(None) == "tiny:1b"
        assert server.model_id("FIRST") == server.model_id("Tiny:1B") == "tiny:1b"
        with pytest.raises(UnknownModel, match="did you mean tiny:1b"):
            server.model_id("tiny:1")
        with pytest.raises(UnknownModel):
            server.model_id("hf:acme/tiny")
        with pytest.raises(ConfigError, match="there is no file"):
            server.model_id("nowhere.gguf")


def test_a_model_named_on_the_fly_that_the_server_has(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(b"GGUF")
    with serve() as served, ApiClient(served.url) as server:
        with pytest.raises(UnknownModel):
            server.model_id(str(path))
        served.pool.registry.resolve(str(path))
        assert server.model_id(str(path)) == "own"


def test_no_model_is_loaded(serve: Serve) -> None:
    with (
        serve(load=None) as served,
        ApiClient(served.url) as server,
        pytest.raises(ServerError, match="no model loaded; name one"),
    ):
        server.model_id(None)


def test_a_server_that_takes_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_client, "ANSWER", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, ApiClient(f"127.0.0.1:{silent.getsockname()[1]}") as server:
        assert not server.alive()
        with pytest.raises(ServerError, match="does not answer"):
            server.get("/")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore closes no socket that is refused
def test_a_server_at_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind(tmp_path, uds=str(tmp_path / "x.sock")) as path:
        with ApiClient(f"unix:{path}") as client, client.keyless() as http:
            assert client.alive()
            assert client.model_id(None) == "tiny:1b"
            assert "".join(piece.text for piece in client.chat("tiny:1b", HELLO, {}))
            assert http.get("/health").status_code == 200
        monkeypatch.setenv("LOCALLAB_UDS", str(path))
        with ApiClient() as client:
            assert (client.url, client.alive()) == (f"unix:{path}", True)
    with ApiClient(f"unix:{path}") as client, pytest.raises(NoServer, match=f"unix:{path}"):
        client.get("/health")


@pytest.mark.parametrize("trust", ["SSL_CERT_FILE", "LOCALLAB_TLS_CERT", None])
def test_a_server_with_a_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: str | None) -> None:
    certificate = issue(tmp_path, "localhost" if trust else "chat.example.com", "127.0.0.1")
    if trust:
        monkeypatch.setenv(trust, str(certificate.cert if trust.startswith("LOCALLAB") else certificate.authority))
    with behind(tmp_path, **certificate.settings()) as port:
        monkeypatch.setenv("LOCALLAB_PORT", str(port))
        with ApiClient(None if trust == "LOCALLAB_TLS_CERT" else f"https://127.0.0.1:{port}") as client:
            assert client.url == f"https://127.0.0.1:{port}"
            if trust:
                assert client.model_id(None) == "tiny:1b"
                assert "".join(piece.text for piece in client.chat("tiny:1b", HELLO, {}))
            else:
                with pytest.raises(ServerError, match=r"certificate of .* is not trusted: unable to .*; SSL_CERT_FILE names"):
                    client.get("/health")


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "LOCALLAB_TLS_CERT"])
def test_certificates_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for path, content in ((tmp_path / "missing.pem", None), (tmp_path / "text.pem", "text")):
        if content:
            path.write_text(content)
        monkeypatch.setenv(variable, str(path))
        with pytest.raises(ConfigError, match=f"{variable}: {path} holds no certificates that can be read: "):
            ApiClient("https://127.0.0.1:1")
