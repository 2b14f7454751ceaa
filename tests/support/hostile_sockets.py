"""What must not stop a server or hold up its other clients: connections that never end what they begin. They need no key."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

Address = tuple[str, int]
SECONDS = 3.0
"""How long each attack goes on, unless the server ends it."""

BODY = b'{"prompt": "Hi", "max_tokens": 64, "ignore_eos": true}'
REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def flood(address: Address, first: bytes, again: bytes) -> None:
    """Send `first`, and then `again` as fast as the server takes it; read nothing."""
    with socket.create_connection(address, timeout=0.5) as sock, contextlib.suppress(OSError):
        sock.sendall(first)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            sock.sendall(again)


def many(address: Address, count: int, first: bytes) -> None:
    """Hold so many connections open that sent no more than `first`."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            with contextlib.suppress(OSError):
                sock = stack.enter_context(socket.create_connection(address, timeout=0.5))
                sock.sendall(first)
        time.sleep(SECONDS)


def websocket(address: Address, frame: bytes) -> None:
    """Open a WebSocket, and then send `frame` as fast as the server takes it."""
    key = base64.b64encode(os.urandom(16))
    opening = (
        b"GET /api/v1/assistant/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
    )
    flood(address, opening, frame)


def frame(opcode: int, payload: bytes, last: bool = True) -> bytes:
    """Return a masked frame (RFC 6455, 5.2) whose mask is zero."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    return bytes([(0x80 if last else 0) | opcode]) + length + bytes(4) + payload


def attacks() -> Iterator[tuple[str, Callable[[Address], None]]]:
    yield "pipelined answers", lambda address: flood(address, b"", REQUEST * 50)
    yield "pipelined small requests", lambda address: flood(address, b"", HEALTH * 500)
    yield "headers without end", lambda address: flood(address, b"GET / HTTP/1.1\r\nHost: a\r\n", b"X-A: b\r\n" * 500)
    yield "one header without end", lambda address: flood(address, b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ", b"a" * 65_536)
    yield "a path without end", lambda address: flood(address, b"GET /", b"a" * 65_536)
    yield (
        "a body larger than allowed",
        lambda address: flood(
            address,
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"10000\r\n" + b"a" * 65_536 + b"\r\n",
        ),
    )
    yield (
        "chunks of one byte",
        lambda address: flood(
            address, b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 5_000
        ),
    )
    yield "silent connections", lambda address: many(address, 800, b"")
    yield "connections that have begun a request", lambda address: many(address, 400, REQUEST[:-10])
    yield "messages without end", lambda address: websocket(address, frame(1, b"{not json") * 500)
    yield "fragments without end", lambda address: websocket(address, frame(0, b"a" * 60_000, last=False))
    yield "pings without end", lambda address: websocket(address, frame(9, b"hello") * 500)
    yield (
        "requests over one WebSocket",
        lambda address: websocket(
            address, frame(1, b'{"prompt": "Hi", "task": "chat", "max_tokens": 200, "ignore_eos": true}') * 50
        ),
    )
