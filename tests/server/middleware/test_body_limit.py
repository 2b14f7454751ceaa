"""Request bodies that do not end, over real sockets."""

from __future__ import annotations

import contextlib
import json
import select
import socket

from locallab.server.middleware.body_limit import AT_ONCE, SMALL
from tests.support.fake_engine import TEXT
from tests.support.http_server import Serve, Served
from tests.support.wait import until

SIZE = 1_000_000


def begun(served: Served, size: int) -> socket.socket:
    """Send a request but the last byte of its body."""
    connection = socket.create_connection((served.http.base_url.host, served.http.base_url.port), timeout=10)
    head = f"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {size}\r\n\r\n"
    connection.sendall(head.encode() + json.dumps({"prompt": "hi", "user": "x"}).encode()[:-1] + b" " * (size - 30))
    return connection


def answered(connections: list[socket.socket]) -> list[socket.socket]:
    return select.select(connections, [], [], 0)[0]


def test_an_address_cannot_hold_memory_with_bodies_that_do_not_end(serve: Serve) -> None:
    large = json.dumps({"prompt": "hi", "user": "x" * (SIZE - 100)})
    with serve(max_body_mib=1) as served:
        assert served.http.post("/generate", content=large).json()["response"] == TEXT
        with contextlib.ExitStack() as stack:
            small = [stack.enter_context(begun(served, SMALL - 1)) for _ in range(8)]
            held = [stack.enter_context(begun(served, SIZE)) for _ in range(AT_ONCE + 8)]
            until(lambda: len(answered(held)) == 8)
            for each in answered(held):
                answer = each.recv(4096)
                assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 2" in answer
                assert b"this address is sending too many large request bodies" in answer
            assert served.http.post("/generate", json={"prompt": "hi"}).json()["response"] == TEXT
            assert not answered(small)
        until(lambda: served.http.post("/generate", content=large).status_code == 200)  # closed connections hold nothing
