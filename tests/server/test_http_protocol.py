"""What clients without a key can do to a connection: many requests at once, heads and bodies without end, silence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from locallab.server import connections, http_protocol, listener, runner
from locallab.server.http_protocol import HttpProtocol
from locallab.settings import ServerSettings
from tests.support.wait import PATIENCE, until

ROOT = Path(__file__).parents[2]
SLOW_APP = ROOT / "tests/support/slow_app.py"
HOST = b"Host: 127.0.0.1\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


class App:
    """Answers with what it got: [target, size of the body, names of the headers].

    /held waits for `go`, /waits until the client leaves, /flood sends until then.
    """

    def __init__(self) -> None:
        self.go = threading.Event()
        self.running = 0
        self.gone = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        assert scope["type"] == "http"
        self.running += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.running -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone += 1
                return
            size, more = size + len(message["body"]), message["more_body"]
        if scope["path"] == "/waits":
            assert (await receive())["type"] == "http.disconnect"
            self.gone += 1
            return
        while scope["path"] == "/held" and not self.go.is_set():
            await asyncio.sleep(0.005)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        gone = asyncio.ensure_future(receive())
        while scope["path"] == "/flood" and not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        gone.cancel()
        body = json.dumps([scope["path"], size, [name.decode() for name, _ in scope["headers"]]]).encode()
        await send({"type": "http.response.body", "body": body[:5], "more_body": True})
        await send({"type": "http.response.body", "body": body[5:], "more_body": False})


class Server:
    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self.port = port

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as sock:
            yield sock

    def exchange(self, *pieces: bytes) -> bytes:
        """Return all that the server sends until it closes the connection."""
        with self.connected() as sock:
            with contextlib.suppress(ConnectionError):  # it may close before it has everything
                for piece in pieces:
                    sock.sendall(piece)
            return read_all(sock)

    def is_alive(self) -> bool:
        return status(self.exchange(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == 200


def read_all(sock: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            received += data
    return received


def read_answers(sock: socket.socket, count: int) -> bytes:
    received = b""
    while received.count(b"\r\n0\r\n\r\n") < count:
        data = sock.recv(65536)
        assert data, received
        received += data
    return received


def status(answer: bytes) -> int:
    found = re.match(rb"HTTP/1.1 (\d+) ", answer)
    assert found, answer
    return int(found[1])


def bodies(answers: bytes) -> list[Any]:
    """Return the bodies of chunked answers."""
    return [json.loads(b"".join(re.findall(rb"\r\n[0-9a-f]+\r\n([^\r]+)", b"\r\n" + each))) for each in split(answers)]


def split(answers: bytes) -> list[bytes]:
    return [each.partition(b"\r\n\r\n")[2] for each in answers.split(b"HTTP/1.1 ")[1:]]


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    app = App()
    with listener.bind("127.0.0.1", 0) as sock:
        server = runner.Background(app, sock, ServerSettings(**{"grace": 0, "host": "127.0.0.1", **settings}))
        try:
            yield Server(app, sock.getsockname()[1])
        finally:
            app.go.set()
            server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def get(target: str, *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/{version}", "Host: 127.0.0.1", *headers, "", ""]).encode()


def post(target: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


# Many requests at once


def test_a_long_pipeline_is_answered_in_order(server: Server) -> None:
    count = 500
    with server.connected() as sock:
        sender = threading.Thread(target=sock.sendall, args=(b"".join(get(f"/{number}") for number in range(count)),))
        sender.start()
        assert [body[0] for body in bodies(read_answers(sock, count))] == [f"/{number}" for number in range(count)]
        sender.join(PATIENCE)


@hypothesis(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.one_of(st.none(), st.integers(0, 3000)), min_size=1, max_size=40),
    cuts=st.lists(st.integers(1, 5000), max_size=6),
)
def test_any_pipeline_in_any_pieces(server: Server, sizes: list[int | None], cuts: list[int]) -> None:
    requests = [
        get(f"/{index}") if size is None else post(f"/{index}", (b"\r\n\r\n" * size)[:size]) for index, size in enumerate(sizes)
    ]
    data = b"".join(requests)
    with server.connected() as sock:
        for cut in cuts:
            sock.sendall(data[:cut])
            data = data[cut:]
        sock.sendall(data)
        found = bodies(read_answers(sock, len(sizes)))
    assert [(target, size) for target, size, _ in found] == [(f"/{index}", size or 0) for index, size in enumerate(sizes)]


def test_a_pipeline_waits_in_the_socket() -> None:
    """The client can send what the system's buffers hold, and no more, until its first request is answered."""
    with serving() as server, server.connected() as sock:
        sock.sendall(get("/held"))
        until(lambda: server.app.running == 1)
        sock.settimeout(0.3)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 256 << 20:
                sent += sock.send(GET * 4000)
        assert sent < 64 << 20 and server.app.running == 1 and server.is_alive()
        sock.settimeout(PATIENCE)
        server.app.go.set()
        assert read_answers(sock, 3).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("behind", [b"", GET, GET * 10], ids=["alone", "with one behind", "with ten behind"])
def test_a_client_that_leaves_is_noticed(behind: bytes) -> None:
    with serving() as server:
        with server.connected() as sock:
            sock.sendall(get("/waits") + behind)
            until(lambda: server.app.running == 1)
        until(lambda: server.app.gone == 1 and server.app.running == 0)


# Heads and bodies without end

ENDLESS = {
    "many fields": b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 200 + b"\r\n",
    "a long field": b"GET / HTTP/1.1\r\n" + HOST + b"a: " + b"b" * 70_000 + b"\r\n\r\n",
    "a long target": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a field of 20 MB": b"GET / HTTP/1.1\r\n" + HOST + b"a: " + b"b" * 20_000_000,
    "a target of 20 MB": b"GET /" + b"a" * 20_000_000,
    "a name of 20 MB": b"GET / HTTP/1.1\r\n" + HOST + b"a" * 20_000_000,
    "a million fields": b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 1_000_000,
    "trailers": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 100_000,
    "chunk extension": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2;" + b"x" * 1_000_000,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_no_head_is_without_end(server: Server, name: str) -> None:
    assert status(server.exchange(ENDLESS[name])) == 431
    assert server.is_alive()


def test_what_a_real_client_sends_is_within_the_limits(server: Server) -> None:
    many = [f"X-Header-{number}: {'v' * 300}" for number in range(120)]
    [[_, _, names]] = bodies(server.exchange(get("/", *many, "Connection: close")))
    assert len(names) == 122


def test_a_body_of_many_small_chunks_lets_others_have_their_turn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = b"".join(b"1\r\nx\r\n" for _ in range(30_000)) + b"0\r\n\r\n"
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    counts, parse = [], HttpProtocol._parse

    def counted(self: HttpProtocol, data: bytes) -> None:
        parse(self, data)
        counts.append(self._chunks)

    monkeypatch.setattr(HttpProtocol, "_parse", counted)
    [[_, size, _]] = bodies(server.exchange(head + chunks))
    assert max(counts) <= http_protocol.CHUNKS + http_protocol.PIECE / 6 and sum(counts) == 30_000
    assert size == 30_000


def test_a_trailer_is_no_header_field(server: Server) -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    [[_, _, names]] = bodies(server.exchange(head + b"2\r\nhi\r\n0\r\nauthorization: Bearer x\r\n\r\n"))
    assert "authorization" not in names


UNREADABLE = {
    b"hello\r\n\r\n": 400,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": 400,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": 400,
    b"CONNECT example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n": 405,
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": 400,
    b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n": 501,
    b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n": 400,
}


@pytest.mark.parametrize(("data", "expected"), UNREADABLE.items(), ids=range(len(UNREADABLE)))
def test_what_cannot_be_read_is_answered_and_ends_the_connection(server: Server, data: bytes, expected: int) -> None:
    answer = server.exchange(data)
    assert status(answer) == expected and "detail" in json.loads(answer.partition(b"\r\n\r\n")[2])


def test_what_cannot_be_read_does_not_get_into_an_answer() -> None:
    with serving() as server:
        with server.connected() as sock:
            sock.sendall(get("/flood"))
            assert status(sock.recv(100)) == 200
            sock.sendall(b"hello\r\n\r\n")
            assert b"HTTP/1.1 400" not in read_all(sock)
        until(lambda: server.app.running == 0)


# Silence

SLOW = {
    "no request": (b"", None),
    "half a head": (b"GET / HTTP/1.1\r\nHost: x", 408),
    "half a body": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\n12345", 408),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_does_not_arrive_in_time_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "ARRIVAL", 0.2)
    data, expected = SLOW[name]
    with serving() as server:
        answer = server.exchange(data)
        assert answer == b"" if expected is None else status(answer) == expected
        until(lambda: server.app.running == 0)


def test_blank_lines_keep_no_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "ARRIVAL", 0.2)
    with serving() as server, server.connected() as sock:
        sock.sendall(GET)
        read_answers(sock, 1)
        sock.sendall(b"\r\n")
        assert status(read_all(sock)) == 408


def test_the_rest_of_a_refused_body_has_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "LINGER", 0.1)
    with serving() as server, server.connected() as sock:
        server.app._answer = _refuse  # type: ignore[method-assign]
        sock.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 1000)
        assert read_all(sock).endswith(b"\r\n\r\nno")


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no", "more_body": False})


def test_a_client_that_reads_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD", 0.5)
    with serving() as server, server.connected() as sock:
        sock.sendall(get("/flood"))
        until(lambda: server.app.running == 1)
        until(lambda: server.app.running == 0)


# Other versions of HTTP


def test_http_1_0_gets_no_chunks(server: Server) -> None:
    answer = server.exchange(get("/", version="1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert json.loads(body)[0] == "/" and b"transfer-encoding" not in head and b"connection: close" in head


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA", "Upgrade: h2c")


def test_an_offer_of_http_2_is_ignored(server: Server) -> None:
    chunked = get("/c", *UPGRADE, "Transfer-Encoding: chunked").replace(b"GET", b"POST")
    pieces = [post("/a", b"hello", *UPGRADE), get("/b", *UPGRADE), chunked, b"5\r\nhello\r\n0\r\n\r\n", post("/d", b"hi")]
    for sent in ([b"".join(pieces)], pieces, [bytes([byte]) for byte in b"".join(pieces)]):
        with server.connected() as sock:
            for piece in sent:
                sock.sendall(piece)
            found = bodies(read_answers(sock, 4))
        assert [(target, size) for target, size, _ in found] == [("/a", 5), ("/b", 0), ("/c", 5), ("/d", 2)]
        assert not {"upgrade", "http2-settings"} & {name for _, _, names in found for name in names}


def test_a_post_is_no_websocket(server: Server) -> None:
    request = post("/", b"hi", "Connection: Upgrade, close", "Upgrade: websocket")
    [[_, size, _]] = bodies(server.exchange(request))
    assert size == 2


# Numbers of connections


def test_silent_connections_keep_nobody_out() -> None:
    with serving(connections_per_address=20) as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.connected()) for _ in range(100)]
        assert server.is_alive()
        silent[0].settimeout(PATIENCE)
        assert read_all(silent[0]) == b""  # the oldest gave its place
        silent[-1].sendall(get("/", "Connection: close"))
        assert status(read_all(silent[-1])) == 200


def test_connections_beyond_the_limit_are_refused_while_all_are_busy() -> None:
    with serving(connections_per_address=5) as server, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(server.connected()) for _ in range(5)]
        for sock in busy:
            sock.sendall(get("/held", "Connection: close"))
        until(lambda: server.app.running == 5)
        refused = server.exchange(GET)
        assert status(refused) == 503 and b"retry-after" in refused
        server.app.go.set()
        assert [status(read_all(sock)) for sock in busy] == [200] * 5
        assert server.is_alive()


def test_a_trusted_proxy_has_the_limit_of_all() -> None:
    with serving(connections_per_address=2, trusted_proxies="127.0.0.0/8") as server, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(server.connected()) for _ in range(6)]
        for sock in busy:
            sock.sendall(get("/held"))
        until(lambda: server.app.running == 6)


def test_few_descriptors_are_said_and_shared_out() -> None:
    limited = f"ulimit -n 64; exec {sys.executable} {SLOW_APP} 1 heeds"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(["bash", "-c", limited], env=environ, **pipes) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stdout
        port = int(process.stdout.readline().split()[1])
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
        server = Server(App(), port)
        assert all(b"0 end" in server.exchange(get("/1", version="1.0")) for _ in range(3))
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE)
    assert re.search("64 file descriptors .* are enough for [1-9][0-9]? connections", log)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_an_ipv6_network_is_one_address(one: str, other: str, same: bool) -> None:
    assert (connections.group(one) == connections.group(other)) is same
