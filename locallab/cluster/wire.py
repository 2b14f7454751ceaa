"""Requests on their way from a front to a replica: ASGI over a TCP connection, one for each request.

The connection begins with a ticket: the request's number, and what only those can make of it who know the replica's secret.
Then both sides send frames: a length and a message, whose kind is its first item. The front's first one is the call; ASGI
messages follow in both directions as they are. A connection that closes ahead of the replica's `done` is a client that has
left, or a replica that has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import socket
import struct
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from locallab.cluster.routing import Route
from locallab.engine import Caller
from locallab.errors import ReplicaGone
from locallab.keys import Key, Role

NUMBER, TICKET = 16, 32
"""Bytes of a request's number, and of a ticket: the number and its mark."""

LONGEST = 1 << 30
"""Bytes of the largest frame: a body with pictures, or an answer in one piece."""

CONNECT = 5.0
"""Seconds for a connection to a replica."""

SILENCE = 15
"""Seconds after which a machine that answers no probe is gone, with its connections."""

Kind = Literal["call", "asgi", "receive", "spend", "count", "counted", "failed", "done"]
"""What a frame is: the call; an ASGI message; that the app wants the next one of a WebSocket; what a model took for the
request; a message of a WebSocket to count, and whether that was allowed; that the app has failed; that the app is done."""

_LENGTH = struct.Struct(">I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A request: its ASGI scope, who sends it, of the scope's state, and its route. `id` is that of its log lines."""

    scope: dict[str, Any]
    key: Key | None
    role: Role
    caller: Caller
    route: Route
    id: str = ""


SCOPE = ("type", "http_version", "method", "scheme", "path", "root_path", "query_string", "headers", "client", "server")
"""What is passed on of a scope."""


def ticket(number: bytes, secret: bytes) -> bytes:
    """Return the ticket of a request with this number for the replica with this secret."""
    return number + hmac.digest(secret, number, "sha256")[: TICKET - NUMBER]


def call_of(scope: Mapping[str, Any], route: Route, id: str) -> Call:
    """Return the call that passes a request on."""
    state = scope["state"]
    kept = {name: scope[name] for name in (*SCOPE, "subprotocols") if name in scope}
    return Call(kept, state["key"], state["role"], state["caller"], route, id)


def scope_of(call: Call) -> dict[str, Any]:
    """Return the scope of a call, without its state."""
    scope = dict(call.scope)
    scope["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    for name in ("client", "server"):
        scope[name] = tuple(scope[name]) if scope.get(name) else None
    return {"asgi": {"version": "3.0"}, "raw_path": scope["path"].encode(), **scope}


class Frames:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        _watch_over(writer.get_extra_info("socket"))

    async def read(self) -> tuple[Kind, Any] | None:
        """Return the next frame, None at the end of the connection, however it ends."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > LONGEST:
                return None
            kind, value = _decode(await self._reader.readexactly(length))
        except (OSError, asyncio.IncompleteReadError, msgspec.DecodeError):
            return None
        return kind, value

    def put(self, kind: Kind, value: object = None) -> None:
        """Send a small frame without waiting for the other side to read; nowhere, if the connection is closed."""
        frame = _encode((kind, value))
        if not self._writer.is_closing():
            self._writer.write(_LENGTH.pack(len(frame)) + frame)

    async def send(self, kind: Kind, value: object = None) -> None:
        """Send a frame, and wait while the other side does not read. Raises OSError."""
        self.put(kind, value)
        if self._writer.is_closing():
            raise ConnectionResetError("the connection is closed")
        await self._writer.drain()

    def cut(self) -> None:
        """End the connection at once; what was sent last may not arrive."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """End the connection once the other side has what was sent, or does not read it for a while."""
        self._writer.close()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._writer.wait_closed(), CONNECT)
        self.cut()


async def connect(host: str, port: int, ticket: bytes) -> Frames:
    """Return a connection to a replica. Raises ReplicaGone."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT)
    except (OSError, asyncio.TimeoutError) as error:
        raise ReplicaGone(f"{host} port {port} cannot be reached: {error or 'no answer'}") from None
    frames = Frames(reader, writer)
    writer.write(ticket)
    return frames


def _watch_over(sock: socket.socket | None) -> None:
    """Have the system find out that the other machine is gone."""
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2), ("TCP_USER_TIMEOUT", 1000 * SILENCE)):
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
