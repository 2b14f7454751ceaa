"""HTTP as clients send it that nobody controls: raw bytes on a connection that may end at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Exchange:
    """What came back; `status` 0: nothing did. Times are those of time.monotonic. `left`: the client went before the end."""

    began: float
    ended: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    left: bool = False

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def request(method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request, after which the server closes the connection."""
    head = {"host": "localhost", "connection": "close", **(headers or {})}
    if body is not None:
        head = {"content-type": "application/json", "content-length": str(len(body)), **head}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    return "\r\n".join(lines).encode() + (body or b"")


async def exchange(port: int, sent: bytes, timeout: float, leave_after: int | None = None) -> Exchange:
    """Sends `sent` and reads until the server closes, for `timeout` seconds at most, or until so many bytes have come."""
    found = Exchange(time.monotonic())
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        await asyncio.wait_for(_talk(port, sent, found, leave_after), timeout)
    found.ended = time.monotonic()
    return found


async def _talk(port: int, sent: bytes, found: Exchange, leave_after: int | None) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        raw = b""
        while part := await reader.read(65536):
            raw += part
            _parse(raw, found)
            if leave_after is not None and len(raw) >= leave_after:
                found.left = True
                return
    finally:
        writer.transport.abort()


def _parse(raw: bytes, found: Exchange) -> None:
    """Reads what has come so far."""
    head, separator, body = raw.partition(b"\r\n\r\n")
    if not separator:
        return
    first, *lines = head.decode("latin-1").split("\r\n")
    found.status = int(first.split()[1])
    found.headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    found.body = _whole(body) if found.headers.get("transfer-encoding") == "chunked" else body


def _whole(body: bytes) -> bytes:
    """The content of chunks, as far as they have come."""
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        try:
            length = int(size, 16)
        except ValueError:
            break
        parts.append(rest[:length])
        body = rest[length + 2 :]
    return b"".join(parts)
