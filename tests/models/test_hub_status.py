from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from locallab.models import hub_status


class Hub:
    """Answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b"{}"
        self.location: str | None = None
        self.asked: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                hub.asked.append((self.command, self.path, self.headers.get("Authorization")))
                self.send_response(302 if hub.location else hub.status)
                if hub.location:
                    self.send_header("Location", hub.location)
                self.send_header("Content-Length", str(len(hub.body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(hub.body)

            do_GET = do_HEAD = _answer

            def log_message(self, *arguments: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


def test_a_hub_that_answers(hub: Hub) -> None:
    assert hub_status.endpoint() == hub.url
    assert hub_status.hub_reachable()
    hub.status = 404
    assert hub_status.hub_reachable()
    assert hub.asked == [("HEAD", "/", None)] * 2


def test_a_hub_that_is_ill(hub: Hub) -> None:
    hub.status = 503
    assert hub_status.hub_problem() == "it answers with HTTP 503"
    assert not hub_status.hub_reachable()


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert hub_status.hub_problem() == "Connection refused"


def test_a_hub_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert hub_status.hub_problem(timeout=0.01) == "timed out"


@pytest.mark.parametrize("url", ["ftp://x", "file:///etc/hostname", "nonsense"])
def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    assert hub_status.hub_problem() == f"HF_ENDPOINT must be an http:// or https:// address, it is {url!r}"


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_nobody_is_asked_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub_status.hub_problem() == "HF_HUB_OFFLINE is set"
    assert hub.asked == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert hub_status.hub_reachable()


def test_whose_token_it_is(hub: Hub) -> None:
    hub.body = json.dumps({"name": "ada"}).encode()
    assert hub_status.token_owner("hf_x") == "ada"
    assert hub.asked == [("GET", "/api/whoami-v2", "Bearer hf_x")]


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_not_taken(hub: Hub, status: int) -> None:
    hub.status = status
    assert hub_status.token_owner("hf_x") is None


@pytest.mark.parametrize(("status", "body"), [(500, b"{}"), (200, b"<html>"), (200, b"[]"), (200, b"{}")])
def test_a_hub_that_does_not_say(hub: Hub, status: int, body: bytes) -> None:
    hub.status, hub.body = status, body
    with pytest.raises(OSError, match=r"HTTP 500|unreadable answer"):
        hub_status.token_owner("hf_x")


def test_a_token_goes_nowhere_else(hub: Hub) -> None:
    """A hub that names another address gets no token sent there."""
    hub.location = f"{hub.url.replace('127.0.0.1', 'localhost')}/elsewhere"
    with pytest.raises(OSError, match="HTTP 302"):
        hub_status.token_owner("hf_x")
    assert [path for _, path, token in hub.asked if token] == ["/api/whoami-v2"]
    assert len(hub.asked) > 1


def test_a_name_that_is_looked_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def look_up(*arguments: object, **options: object) -> None:
        done.wait(60)
        raise OSError("found nothing")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setenv("HF_ENDPOINT", "http://slow.invalid")
    assert hub_status.hub_problem(timeout=0.01) == "no answer"
    done.set()
